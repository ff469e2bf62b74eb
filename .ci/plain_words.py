"""Refuses phrases that are not plain technical English, with what to write instead; part of `make lint`.

Usage: python .ci/plain_words.py [FILE ...]   (default: everything that people read)
"""

import io
import re
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
PHRASES = {
    r"untold": "without the instruction; unconditioned",
    r"(?:is|are|was|were|being|been|be) told": "with the instruction; gets; receives",
    r"tells? (?:a|the) (?:user|policy|robot|network)": "shows, gives",
    r"anew": "again, from scratch",
    r"wish(?:es|ed)?": "request",
    r"(?:what|that|which) (?:is|are) no\b(?! (?:longer|more|less))": "missing; not a ...; not found",
    r"where none (?:is|are)": "missing; not found",
    r"what is none": "missing; not found",
    r"go(?:es)? on(?! the)": "resumes, continues",
    r"so many": "the number of; how many",
    r"rivals?": "baseline",
    r"customary": "usual; default",
    r"a thought|thoughts": "prediction, output",
    r"pictures?": "images",
    r"chooser": "instruction gate",
    r"the eyes?": "camera encoder",
    r"lanes?": "episode streams",
    r"keeper": "checkpoint callback",
    r"knows? no": "has no; does not support",
    r"gives? back": "returns",
    r"be there\.": "say what the value is",
}
"""Regular expression -> what to write."""
WORDS = [(re.compile(rf"\b(?:{phrase})(?:\b|$)", re.IGNORECASE), better) for phrase, better in PHRASES.items()]
SCOPE = ("robopolicy", "tests", "eval", "examples", "configs", "docs", "README.md", "data/README.md")
"""Files and folders that are checked."""
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml"}
CODE = re.compile(r"`[^`\n]*`|\{[^{}\n]*\}|\b\w+_\w+\b")
"""Code inside of prose: quoted names, fields of f-strings, names with underscores."""


def prose_of(path: Path) -> list[tuple[int, str]]:
    """Line number and text of what people read: whole pages, but only the comments and strings of Python code."""
    text = path.read_text()
    if path.suffix != ".py":
        return list(enumerate(text.splitlines(), start=1))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    return [
        (token.start[0] + offset, line)
        for token in tokens
        if token.type in kinds
        for offset, line in enumerate(token.string.split("\n"))
    ]


def findings(path: Path) -> list[tuple[int, str, str]]:
    """Line number, phrase and advice for each listed phrase."""
    found = []
    for number, line in prose_of(path):
        prose = CODE.sub(" ", line)
        if re.fullmatch(r"\W*\w+\W*", prose):  # a name as a string, such as an observation key
            continue
        found += [(number, match[0], better) for word, better in WORDS for match in word.finditer(prose)]
    return found


def main(arguments: list[str]) -> int:
    """Print every finding; the exit code is 1 if there is one."""
    folders = [ROOT / name for name in SCOPE]
    files = [Path(name).resolve() for name in arguments] or [
        path
        for folder in folders
        for path in ([folder] if folder.is_file() else sorted(folder.rglob("*")))
        if path.suffix in SUFFIXES
    ]
    failed = False
    for path in files:
        for number, phrase, better in findings(path):
            failed = True
            print(f"{path.relative_to(ROOT)}:{number}: {phrase!r}: write {better}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
