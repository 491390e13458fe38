"""Break the promotion gate in many ways, one at a time, and see that its tests notice each.

    make test-gate-mutations                       # all of them, minutes
    python -m tests.support.mutate_gate margin hash        # those whose name has one of these words

Works on a copy of the sources. Exit code 1: a broken gate passed the tests; 2: the check itself did not work.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
GATE, DECISION = "amlp/promotion/gate.py", "amlp/promotion/decision.py"
TESTS = "tests/unit/promotion/test_gate.py"
# Every run has a process of its own, which starts with the slow imports done and none of the project's.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["pytest", "pandas", "pydantic", "yaml", "hypothesis.strategies", "hypothesis.extra.numpy"]
)
_COPIED = ("amlp", "benchmarks", "tests")


@dataclass(frozen=True)
class Mutation:
    """A way to break the gate: in `file`, `old` becomes `new`; `old` stands there exactly once."""

    name: str
    file: str
    old: str
    new: str

    def apply(self, text: str) -> str:
        """Break the text of the file.

        Raises:
            ValueError: the text to replace is not there, or more than once: the gate changed, and so must this list.
        """
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: {self.file} holds {count} times, expected once: {self.old!r}")
        return text.replace(self.old, self.new)


MUTATIONS = (
    # What is compared with what
    Mutation(
        "the challenger is compared with itself",
        GATE,
        "before, after = _aligned(reference), _aligned(challenger)\n    figures",
        "before, after = _aligned(challenger), _aligned(challenger)\n    figures",
    ),
    Mutation(
        "the champion is compared with itself",
        GATE,
        "before, after = _aligned(reference), _aligned(challenger)\n    figures",
        "before, after = _aligned(reference), _aligned(reference)\n    figures",
    ),
    Mutation(
        "promotes the one that lost",
        GATE,
        "before, after = _aligned(reference), _aligned(challenger)\n    figures",
        "after, before = _aligned(reference), _aligned(challenger)\n    figures",
    ),
    Mutation("the same model passes for a challenger", GATE, "if reference.digest == challenger.digest or", "if"),
    Mutation("the same version passes for a challenger", GATE, " or reference.name == challenger.name:", ":"),
    Mutation("always compares with the baseline", GATE, "baseline if champion is None else champion", "baseline"),
    Mutation(
        "a first champion has to beat nothing",
        GATE,
        "= verdict(figures, params)",
        "= verdict(figures, params) if champion else ('promote', 'better', '')",
    ),
    Mutation("the first challenger is compared with itself", GATE, "baseline if champion", "challenger if champion"),
    # Which scores
    Mutation("no hash of the test split is checked", GATE, "if side.test_hash != split.hash:", "if False:"),
    Mutation(
        "both hashes are compared with each other only",
        GATE,
        "if side.test_hash != split.hash:",
        "if reference.test_hash != challenger.test_hash:",
    ),
    Mutation("a champion's old scores are taken", GATE, "if reference.job != challenger.job:", "if False:"),
    Mutation("missing cases are not noticed", GATE, "missing := split.case_ids - scored", "missing := set()"),
    Mutation(
        "cases of elsewhere are not noticed", GATE, "unexpected := scored - split.case_ids", "unexpected := set()"
    ),
    Mutation("duplicates are not noticed", GATE, '(again := table["case_id"].duplicated()).any()', "False"),
    Mutation(
        "NaN is accepted", GATE, "-TOLERANCE, 1.0 + TOLERANCE)", "-TOLERANCE, 1.0 + TOLERANCE) & table[name].notna()"
    ),
    Mutation("percent are accepted", GATE, "1.0 + TOLERANCE)", "100.0)"),
    Mutation("rows without a group are accepted", GATE, "if count := int(table[name].isna().sum()):", "if count := 0:"),
    Mutation(
        "a case may change its class", GATE, '("group", "label", "lesion_fraction"):', '("group", "lesion_fraction"):'
    ),
    Mutation(
        "a case may change its patient", GATE, '("group", "label", "lesion_fraction"):', '("label", "lesion_fraction"):'
    ),
    Mutation("a case may change its truth", GATE, '("group", "label", "lesion_fraction"):', '("group", "label"):'),
    # Statistics
    Mutation("scores are sorted, not paired", GATE, "new - old}", "np.sort(new) - np.sort(old)}"),
    Mutation("pairs are of different cases", GATE, "new - old}", "np.roll(new, 1) - old}"),
    Mutation(
        "means are compared, as if patients were equal", GATE, "new - old}", "np.full(len(new), (new - old).mean())}"
    ),
    Mutation("cases are paired by row", GATE, '.sort_values("case_id", ignore_index=True)', ".reset_index(drop=True)"),
    Mutation(
        "images are resampled, not patients",
        GATE,
        "        differences, groups, samples",
        "        differences, np.arange(len(groups)), samples",
    ),
    Mutation("patients are counted as images", GATE, 'before["group"].nunique()', "len(before)"),
    Mutation("any number of patients will do", GATE, "if groups < params.min_groups:", "if False:"),
    Mutation(
        "one patient too many is asked for", GATE, "if groups < params.min_groups:", "if groups <= params.min_groups:"
    ),
    Mutation("the interval is narrower than asked", GATE, "confidence=params.confidence", "confidence=0.5"),
    Mutation(
        "the resamples change from call to call",
        DECISION,
        'int.from_bytes(hashlib.sha256(self.hash.encode()).digest()[:8], "big")',
        '__import__("secrets").randbits(64)',
    ),
    Mutation(
        "the resamples do not depend on the split",
        DECISION,
        'int.from_bytes(hashlib.sha256(self.hash.encode()).digest()[:8], "big")',
        "0",
    ),
    # The rule
    Mutation(
        "an interval that touches 0 is enough", DECISION, "return exceeds(self.worst, 0.0)", "return self.worst >= 0.0"
    ),
    Mutation("the interval is ignored", DECISION, "return exceeds(self.worst, 0.0)", "return exceeds(self.gain, 0.0)"),
    Mutation(
        "the upper end is asked",
        DECISION,
        "self.low if SIGN[self.kind] > 0 else -self.high",
        "self.high if SIGN[self.kind] > 0 else -self.low",
    ),
    Mutation(
        "the minimum itself is enough",
        GATE,
        "not exceeds(effect.gain, params.min_effect)",
        "effect.gain < params.min_effect - TOLERANCE",
    ),
    Mutation("rounding decides at the minimum", DECISION, "return value > bound + TOLERANCE", "return value > bound"),
    Mutation("no minimum effect", GATE, "not exceeds(effect.gain, params.min_effect)", "not exceeds(effect.gain, 0.0)"),
    Mutation("a tie promotes", GATE, "if not against:", "if not against or against[0][0] == 'tie':"),
    Mutation("classes are ignored", GATE, "        if not each.passed:", "        if False:"),
    Mutation(
        "more false positives count as better", DECISION, '"false_positive_rate": -1}', '"false_positive_rate": 1}'
    ),
    Mutation("a lower DSC counts as better", DECISION, '{"dsc": 1,', '{"dsc": -1,'),
    Mutation(
        "a class's mean is enough",
        DECISION,
        "or exceeds(self.worst, -self.margin)",
        "or exceeds(self.gain, -self.margin)",
    ),
    Mutation("a class may lose anything", DECISION, "or exceeds(self.worst, -self.margin)", "or True"),
    Mutation(
        "a class may lose nothing",
        DECISION,
        "return self.gain >= -TOLERANCE or exceeds(self.worst, -self.margin)",
        "return self.gain >= -TOLERANCE",
    ),
    Mutation(
        "a class must be shown to be no worse", DECISION, "return self.gain >= -TOLERANCE or exceeds", "return exceeds"
    ),
    Mutation(
        "a loss of the margin itself is accepted",
        DECISION,
        "or exceeds(self.worst, -self.margin)",
        "or self.worst >= -self.margin - TOLERANCE",
    ),
    Mutation(
        "the margins are mixed up",
        GATE,
        '{"dsc": params.class_margin, "false_positive_rate": params.false_positive_margin}',
        '{"dsc": params.false_positive_margin, "false_positive_rate": params.class_margin}',
    ),
    Mutation("classes are pooled", GATE, "(labels == label) & lesion)", "lesion)"),
    Mutation(
        "false positives of images with a lesion count", GATE, "(labels == label) & ~lesion)", "(labels == label))"
    ),
    Mutation(
        "false positives are said by the truth", GATE, 'table["predicted_fraction"] > 0', 'table["lesion_fraction"] > 0'
    ),
    # What is said
    Mutation("a refusal promotes", GATE, 'outcome="refuse"', 'outcome="promote"'),
    Mutation("the record leaves the classes out", GATE, "classes=tuple(figures[1:])", "classes=()"),
)


def run_tests(folder: Path) -> tuple[int, str]:
    """Run the gate's tests on the sources in `folder`; return pytest's exit code and the first test that failed."""
    output = folder / "output.txt"
    process = CONTEXT.Process(target=_pytest, args=(folder, output))
    process.start()
    process.join()
    assert process.exitcode is not None
    text = output.read_text(encoding="utf-8")
    failed = re.search(r"^FAILED \S+?::(.+?)( - |$)", text, flags=re.MULTILINE)
    return process.exitcode, failed[1] if failed else text[-2000:]


def _pytest(folder: Path, output: Path) -> None:
    """Be a process that runs the tests of the copy in `folder`."""
    import pytest

    os.chdir(folder)
    # Before this project, and before where it is installed.
    sys.path.insert(0, str(folder))
    # Bytecode is said from other sources by time and size, which two mutations may have in common.
    sys.dont_write_bytecode = True
    with output.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # No time limit a test: on a busy machine it would make a mutation look noticed that was not.
    code = pytest.main([TESTS, "-x", "-q", "-p", "no:cacheprovider", "-o", "timeout=0"])
    sys.exit(int(code))


def main(words: list[str]) -> int:
    """Try the mutations whose name has one of `words`, or all of them."""
    chosen = [mutation for mutation in MUTATIONS if not words or any(word in mutation.name for word in words)]
    survived = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in _COPIED:
            shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(PROJECT / "pyproject.toml", folder)
        code, what = run_tests(folder)
        if code != 0:
            print(f"the tests fail on the gate as it is: {what}")
            return 2
        for number, mutation in enumerate(chosen, start=1):
            file = folder / mutation.file
            text = file.read_text(encoding="utf-8")
            file.write_text(mutation.apply(text), encoding="utf-8")
            code, what = run_tests(folder)
            file.write_text(text, encoding="utf-8")
            if code not in (0, 1):
                print(f"{mutation.name}: pytest ended with {code}: {what}")
                return 2
            if code == 0:
                survived.append(mutation.name)
            print(f"{number}/{len(chosen)} {mutation.name}: {'SURVIVED' if code == 0 else what}", flush=True)
    print(f"{len(chosen) - len(survived)} of {len(chosen)} mutations noticed", *survived, sep="\n  survived: ")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
