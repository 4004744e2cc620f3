"""What to do about what judging found, in the words of the place where a person corrects a model.

Judgements and corrections are the same everywhere; only what to do is said in options, in keys of a request, or in
arguments.
"""

from __future__ import annotations

from dataclasses import dataclass

LAST_RESORT = "; if nothing helps, check the calibration samples: preprocessing, kind and number"
"""What to do at last about a corrected model that is worse than the quantised one."""


@dataclass(frozen=True)
class Advice:
    """What to do, as the end of a sentence.

    `worse` is about a corrected model that is worse than the quantised one, `samples` about corrections that few
    samples decide, `precision` about a precision that is unknown, `caveat` about the caveat of a judgement, and
    `other_weights` about statistics of a model with other weights. `harm` names the option that tries the network
    without each correction, `judge` the one that compares models.
    """

    worse: str
    harm: str
    judge: str
    precision: str
    caveat: str
    other_weights: str
    samples: str = (
        "check the calibration samples: they need the preprocessing that the model gets in use (scale, mean, order of "
        "channels), inputs of the same kind as the held-out ones, and enough of them"
    )


ON_COMMAND_LINE = Advice(
    worse=(
        "correct layer by layer (--iterative), leave out what does harm (--do-no-harm), or round less coarsely "
        "(--weight-range mse, --rounding gram, --per-channel, more bits)" + LAST_RESORT
    ),
    harm="--do-no-harm",
    judge="--held-out",
    precision=(
        ". To estimate it, set `statistics: [spread]` in the configuration of the run, count two samples or more, and "
        "give the models"
    ),
    caveat="judge the model as you run it, with --score, and if it is worse, quantise with reduce_range=True",
    other_weights="add --other-weights",
)
IN_A_JOB = Advice(
    worse=(
        "correct layer by layer (`iterative`), leave out what does harm (`do_no_harm`), or round less coarsely "
        "(`weight_range: mse`, `per_channel`, more bits)" + LAST_RESORT
    ),
    harm="`do_no_harm`",
    judge="`held_out`",
    precision="; it takes two samples or more",
    caveat="judge the model where it will run, and if it is worse, quantise with reduce_range=True",
    other_weights="submit the job again, which measures the model that it corrects",
)
IN_TORCH = Advice(
    worse=(
        "correct layer by layer (`iterative`), leave out what does harm (`do_no_harm`), or round less coarsely (steps "
        "per channel, more bits)" + LAST_RESORT
    ),
    harm="`do_no_harm`",
    judge="`held_out`",
    precision=": that of torch models is not estimated",
    caveat="judge the model where it will run",
    other_weights="give `other_weights=True`",
)
