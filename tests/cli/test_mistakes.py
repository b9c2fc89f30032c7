"""What a user gets wrong is one line on stderr, exit code 2, and changes no file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command_line import Capture, fails, files

REFUSED: list[tuple[list[str], str]] = [
    (["train", "--method", "nope"], "unknown method 'nope'; known: ste"),
    (["train", "--model", "nope"], "unknown model 'nope'; known: resnet18_1w1a"),
    (["train", "--dataset", "nope"], "unknown dataset 'nope'; known: digits"),
    (["train", "--model", "none.py:Net"], "none.py does not exist"),
    (["train", "--model", "net.py"], "model file net.py needs the name of a class or function, net.py:ClassOrFactory"),
    (["train", "--model", "net.py:deep"], "net.py:deep, called with those of num_classes, in_channels, image_size"),
    (["summary", "net.py:deep"], "missing 1 required positional argument: 'depth'"),
    (
        ["train", "--model", "exits.py:net"],
        "exits.py fails to import: exits.py:1: in <module>: it ended Python (SystemExit: 3)",
    ),
    (["train", "--epochs", "0"], "epochs must be at least 1, got 0"),
    (["train", "--epochs", "many"], "epochs must be a whole number, got 'many'"),
    (["train", "--optimizer", "lion"], "optimizer must be one of sgd, adam, adamw, got 'lion'"),
    (["train", "--lr", "-1"], "lr must be above 0"),
    (["train", "--lr-type", "step"], "lr_type step needs lr_steps"),
    (["train", "--device", "tpu"], "device must be one of auto, cpu, cuda"),
    (["train", "--set", "epochs"], "--set expects key=value, got 'epochs'"),
    (["train", "--set", "=3"], "--set expects key=value"),
    (["train", "--set", "epochs=many"], "epochs must be a whole number, got 'many'"),
    (["train", "--set", "nope=1"], "method rbnn has no option 'nope'; its options: rotation_update"),
    (["train", "--set", "tmin=-1"], "0 < tmin <= tmax"),
    (["train", "--set", "epochs=3", "--epochs", "4"], "epochs is given twice"),
    (["train", "--method", "ste", "--tmin", "0.1"], "method ste has no option 'tmin'; its options: surrogate"),
    (["train", "--method", "ste", "--Tmax", "0.1"], "method ste has no option 'tmax'"),
    (["train", "--method", "ste", "--rotation-update", "2"], "method ste has no option 'rotation_update'"),
    (["train", "--method", "ste", "--set", "surrogate=cubic"], "unknown surrogate 'cubic'"),
    (["train", "--dataset", "cifar10"], "--data-root"),
    (["train", "--dataset", "cifar10", "--data-root", "nowhere"], "nowhere/cifar-10-batches-bin"),
    (["train", "--resume"], "there is no run in runs/rbnn_resnet20_1w1a_digits"),
    (["train", "--nope"], "bnnedge train has no option --nope; did you mean"),
    (["train", "--weight-decay", "-1"], "weight_decay must be at least 0, got -1"),
    (["train", "--rotation-update"], "Option '--rotation-update' requires an argument"),
    (["train", "--no-batch-size"], "bnnedge train has no option --no-batch-size; did you mean"),
    (["train", "ste"], "unexpected extra argument(s) (ste)"),
    (["train", "--a32", "yes"], "unexpected extra argument(s) (yes)"),
    (["train", "--set", "a32=perhaps"], "a32 must be true or false, got 'perhaps'"),
    (["train", "--image-size", "8x"], "image_size must be a whole number, or several with commas between, got '8x'"),
    (["train", "--validation-split", "most"], "validation_split must be one of own, none, or a finite number, got"),
    (["train", "--validation-split", "1.5"], "validation_split must be above 0 and below 1, got 1.5"),
    (["train", "--validate-on", "train"], "validate_on must be one of val, test, got 'train'"),
    (["train", "--set", "epoch=3"], "did you mean epochs?"),
    (["train", "--tmin", "0.1", "--set", "tmin=1"], "tmin is given twice"),
    (["train", "--method", "bop", "--variant", "biased"], "method bop has no option 'variant'; its options: surrogate"),
    (["train", "--method", "bop2", "--variant", "odd"], "variant must be one of biased, unbiased, got 'odd'"),
    (["train", "--method", "ste", "--mc-steps", "5"], "method ste has no option 'mc_steps'; its options: surrogate"),
    (["train", "--method", "bayesbinn", "--mc-steps", "-1"], "mc_steps must be at least 0, got -1"),
    (["train", "--method", "bayesbinn", "--evaluate-steps"], "Option '--evaluate-steps' requires an argument"),
    (["train", "--method", "bnew", "--phases", "2,1"], "phases must be some of 1,2,3, in this order, got 2,1"),
    (["train", "--method", "reactnet", "--phases", "3"], "phases must be some of 1,2, in this order, got 3"),
    (["train", "--method", "rbnn", "--phases", "1,2"], "method rbnn has no option 'phases'; its options: rotation"),
    (["train", "--teacher", "nowhere"], "nowhere"),
    (["train", "--teacher", "net.py"], "net.py"),
    (["train", "--distill-weight", "0.5"], "distill_weight and distill_temperature need a teacher"),
    (["train", "--lr-type", "exp"], "lr_type exp needs lr_decay_epochs"),
    (["train", "--lr-decay-epochs", "3"], "lr_decay_epochs belongs to lr_type exp"),
    (["train", "--init", "nowhere"], "nowhere/last.ckpt does not exist"),
    (["train", "--method", "bnew", "--phases", "2"], "bnew without its phase 1 starts from trained weights"),
    (["train", "--method", "bnew", "--phases", "3"], "bnew without its phase 1 starts from trained weights"),
    (["train", "--method", "reactnet", "--phases", "2"], "reactnet without its phase 1 starts from trained weights"),
    (["bench", "net.onnx", "--threads", "100000"], "--threads"),
    (["train", "--seed", str(2**63)], "seed must be below 2^63"),
    (["summary", "resnet20_1w1a", "--image-size", "-4"], "--image-size"),
    (["summary", "resnet20_1w1a", "--num-classes", "0"], "--num-classes"),
    (["summary", "net.py"], "model file net.py needs the name of a class or function"),
    (["evaluate", "nowhere"], "nowhere does not exist"),
    (["evaluate", "net.py"], "expected a file ending in .onnx or .tflite, found .py"),
    (["evaluate", ".", "--split", "all"], "--split must be one of train, val, test, got 'all'"),
    (["evaluate", "."], "no config.yaml"),
    (["evaluate"], "RUN|FILE"),
    (["list", "pets"], "unknown list 'pets'; known: methods, models"),
    (["nope"], "nope"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=[" ".join(a) for a, _ in REFUSED])
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments: list[str], words: str, tmp_path: Path, capsys: Capture
) -> None:
    before = files(tmp_path)
    fails(arguments, words, capsys)
    assert files(tmp_path) == before
