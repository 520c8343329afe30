"""Studies: many what-if scenarios at once.

study.py     what the user asks for         inputs.py    what all points read, once
space.py     grids, draws and ranges        points.py    one scenario of the study, and what became of it
pareto.py    who is not beaten              search.py    which points to try next
local.py     points on processes            on_ray.py    points on a Ray cluster
folder.py    what is kept, and written      picture.py   the front as a picture
sweep.py     all of it in one function      cli.py       the command
"""
