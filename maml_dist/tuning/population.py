"""Population: trials that are trained an interval at a time, and learn from one another between.

Each interval is trained to its end by all of them, at once or in turn; then exploiting.py says who
goes on from whose checkpoint, in a run of its own: trials/3-2000 is that of trial 3 from iteration
2000 on. What is recorded says where a population stands, so that nothing else need be kept.
"""

from maml_dist.config.recipe import Config
from maml_dist.runs.fork import fork
from maml_dist.runs.lock import Locked, LockLost
from maml_dist.tuning.draws import Draws
from maml_dist.tuning.exploiting import exploit
from maml_dist.tuning.finishing import Seeds
from maml_dist.tuning.record import Takeover
from maml_dist.tuning.search_space import Search
from maml_dist.tuning.trial_run import begun, config_of, place_of
from maml_dist.tuning.trials import Trial, Trials


class Population:
    """What Tune is to run of the trials."""

    def __init__(self, plan: Search, config: Config, trials: Trials, draws: Draws | Seeds) -> None:
        """`config` is what all of them share; those that are not drawn yet are drawn."""
        self._plan, self._config, self._trials = plan, config, trials
        self._given: set[tuple[int, int]] = set()  # by number and iterations before
        while len(trials.all) < plan.num_trials:
            draw = draws.draw(len(trials.all))
            assert draw is not None  # equal ones stand
            trials.drawn(len(trials.all), draw)
        self._end()  # those of whom a kill has kept it

    @property
    def over(self) -> bool:
        """Whether all have ended."""
        return not self._live

    def next(self) -> Trial | None:
        """A trial that is to be trained to the end of its interval; None: not now, or none."""
        if self._live and self._before > self._trials.exploited_at:
            self._exploit()
        for trial in self._live:
            if trial.reached == self._before and (trial.number, trial.reached) not in self._given:
                self._given.add((trial.number, trial.reached))
                return trial
        return None

    def until(self, trial: Trial) -> int:
        """The iterations at the end of its interval."""
        iterations: int = self._config["iterations"]
        return min(trial.reached + interval(self._plan, self._config), iterations)

    @property
    def _live(self) -> list[Trial]:
        return [trial for trial in self._trials.all.values() if not trial.ended]

    @property
    def _before(self) -> int:
        """Iterations that all have made, interval by interval."""
        return min(trial.reached for trial in self._live)

    def _exploit(self) -> None:
        trials, maximize = self._trials, self._trials.judge.maximize[0]
        found = exploit(self._plan, self._live, self._before, maximize=maximize)
        for each in found.takeovers:
            try:
                self._fork(each, found.iteration)
            except (Locked, LockLost):  # of another process of this search
                raise
            except ValueError as error:  # again it would be the same
                each.error = str(error)
        trials.exploited(found)  # only now: made again, a fork that is there stays
        self._end()

    def _end(self) -> None:
        """End those that the last exploit has left without a way on."""
        for trial in self._live:
            if trial.reached > self._trials.exploited_at:
                continue
            if trial.end.error:  # it could not take over
                self._trials.ended(trial, "failed")
            elif trial.diverged:  # as all others have
                self._trials.ended(trial, "diverged")

    def _fork(self, takeover: Takeover, iteration: int) -> None:
        source, folder = self._trials.all[takeover.source], self._trials.path
        there = source.runs[-1]
        before = begun(folder(there), config_of(self._config, there, source.values))
        new = f"{takeover.trial}-{iteration}"
        made = fork(before, folder(new), takeover.values | place_of(self._config, new))
        last = made.checkpoints.last
        if last is None or last.iteration != iteration:
            raise ValueError(f"{made.path}: is not of iteration {iteration}, as it should be")


def interval(plan: Search, config: Config) -> int:
    """Iterations of an interval."""
    found: int = plan.perturbation_interval or config["checkpoint_every"]
    return found
