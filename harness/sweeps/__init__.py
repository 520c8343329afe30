"""Studies: many what-if scenarios at once, and which of them no other beats.

study.py         what the user asks for        space.py         grids, draws and ranges of keys
points.py        one scenario of a study       fingerprint.py   whether it is still the same
local.py         points on processes           on_ray.py        points on a Ray cluster
trials.py        points run, or known          search.py        which to try next
capacity.py      the highest load that holds   pareto.py        which are not beaten
folder.py        what is kept, and written     record.py        study.json and its tables
picture.py       the front as a picture        front_table.py   and as a table
capacity_table.py  capacities as a table       wording.py       figures and limits in words
devices.py       how many of which, by point   below_table.py   what is said below a table
sweep.py         all of it in one function     cli.py           the command
"""
