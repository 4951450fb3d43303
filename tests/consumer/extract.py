"""extract.py PAGE.md FOLDER: writes the programs of a page (```cpp blocks that begin with "// NAME.cpp") and its
CMakeLists.txt (the ```cmake block) into a folder. Programs have at most 30 lines."""
import pathlib
import re
import sys

page, folder = sys.argv[1:]
blocks = re.findall(r"^```(cpp|cmake)\n(.*?)^```$", pathlib.Path(page).read_text(encoding="utf-8"), re.S | re.M)
for kind, text in blocks:
    name = "CMakeLists.txt" if kind == "cmake" else re.match(r"// (\w+\.cpp)", text).group(1)
    if kind == "cpp" and text.count("\n") > 31:  # the line with the name is not counted
        sys.exit(f"{name} has {text.count(chr(10)) - 1} lines")
    pathlib.Path(folder, name).write_text(text, encoding="utf-8")
