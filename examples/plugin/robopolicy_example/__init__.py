"""Components for robopolicy, one a file; robopolicy imports the file of a kind when that kind is asked for."""
