"""Training methods by name, one file each. A new file and a line here, and the command line and the tests know it."""

from bnnedge.registry import Registry

METHODS = Registry(
    "method",
    [
        ("ste", "bnnedge.methods.ste:Ste"),
        ("xnor", "bnnedge.methods.xnor:Xnor"),
        ("rbnn", "bnnedge.methods.rbnn:Rbnn"),
        ("reactnet", "bnnedge.methods.reactnet:Reactnet"),
        ("bop", "bnnedge.methods.bop:Bop"),
        ("bop2", "bnnedge.methods.bop2:Bop2"),
        ("bmd", "bnnedge.methods.bmd:Bmd"),
        ("bayesbinn", "bnnedge.methods.bayesbinn:Bayesbinn"),
        ("bnew", "bnnedge.methods.bnew:Bnew"),
        ("float", "bnnedge.methods.float32:Float32"),
    ],
)
