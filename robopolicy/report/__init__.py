"""Self-contained HTML pages about one evaluation or several runs, and videos of demos."""

from robopolicy.report.comparison import write_comparison
from robopolicy.report.evaluation import write_evaluation_report, write_side_by_side
from robopolicy.report.policy_page import write_policy_page
from robopolicy.report.video import demo_images, show_in_rerun, write_video

__all__ = [
    "demo_images",
    "show_in_rerun",
    "write_comparison",
    "write_evaluation_report",
    "write_policy_page",
    "write_side_by_side",
    "write_video",
]
