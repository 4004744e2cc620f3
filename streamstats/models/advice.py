"""What to do about what judging found, in the words of the place where a person corrects a model.

Judgements and corrections are the same everywhere; only what to do is said in options, in keys of a request, or in
arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import either

LAST_RESORT = "; if nothing helps, check the calibration samples: preprocessing, kind and number"
"""What to do at last about a corrected model that is worse than the quantised one."""
QUANTISE = "quantise the float model less coarsely (a step per output channel, more bits)"
"""What to do about a model that another quantiser wrote, whose steps stay as they are."""


@dataclass(frozen=True)
class Advice:
    """What to do, as the end of a sentence.

    `staged` corrects layer by layer, and `finer` rounds weights less coarsely, where they are rounded here. `samples`
    is about corrections that few samples decide, `precision` about a precision that is unknown, `caveat` about the
    caveat of a judgement, `other_weights` about statistics of a model with other weights, and `models` about a report
    without models. `harm` names the option that tries the network without each correction, `judge` the one that
    compares models. `worse` is about a corrected model that is worse than the quantised one; it is empty until `after`
    tells.
    """

    staged: str
    finer: str
    harm: str
    judge: str
    precision: str
    caveat: str
    other_weights: str
    models: str
    samples: str = (
        "check the calibration samples: they need the preprocessing that the model gets in use (scale, mean, order of "
        "channels), inputs of the same kind as the held-out ones, and enough of them"
    )
    worse: str = ""

    def after(self, *, staged: bool, harmless: bool, rounded: bool) -> Advice:
        """The same with `worse`, which names nothing that was tried or that does not apply.

        A model that is corrected layer by layer is `staged`; one without the corrections that do harm is `harmless`.
        A model that was not `rounded` here is for its quantiser to round.
        """
        untried = [] if staged else [f"correct layer by layer ({self.staged})"]
        untried += [] if harmless else [f"leave out what does harm ({self.harm})"]
        last = f"round less coarsely ({self.finer})" if rounded else QUANTISE
        return replace(self, worse=either([*untried, last]) + LAST_RESORT)


ON_COMMAND_LINE = Advice(
    staged="--iterative",
    finer="--weight-range mse, --rounding gram, --per-channel, more bits",
    harm="--do-no-harm",
    judge="--held-out",
    precision=(
        ". To estimate it, set `statistics: [spread]` in the configuration of the run, and count two samples or more"
    ),
    caveat="judge the model as you run it, with --score, and if it is worse, quantise with reduce_range=True",
    other_weights="add --other-weights",
    models="give them (--model, --quantized or --bits)",
)
IN_A_JOB = Advice(
    staged="`iterative`",
    finer="`weight_range: mse`, `per_channel`, more bits",
    harm="`do_no_harm`",
    judge="`held_out`",
    precision="; it takes two samples or more",
    caveat="judge the model where it will run, and if it is worse, quantise with reduce_range=True",
    other_weights="submit the job again, which measures the model that it corrects",
    models="submit a job of the kind `onnx`",
)
IN_TORCH = Advice(
    staged="`iterative`",
    finer="steps per channel, more bits",
    harm="`do_no_harm`",
    judge="`held_out`",
    precision=": that of torch models is not estimated",
    caveat="judge the model where it will run",
    other_weights="give `other_weights=True`",
    models="correct a quantised model",
)
