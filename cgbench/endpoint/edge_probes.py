"""Probe one edge, as often as it takes to tell a fault from a flake, and conclude."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cgbench.endpoint.acceptance_across import Acceptance, AcceptanceFound, judge_acceptance
from cgbench.endpoint.answers import Answer, Ask
from cgbench.endpoint.edge_findings import EdgeFinding, EdgeVerdict, WrongRow
from cgbench.endpoint.edges import Edge
from cgbench.endpoint.endpoint_request import EndpointRequest, Planned
from cgbench.endpoint.engine_counters import Drafted, read_counters, sum_of
from cgbench.endpoint.near_ties import Likeness, Outcome, judge, ties_in, worst
from cgbench.endpoint.probes import Row, rows_of
from cgbench.endpoint.references import Reference
from cgbench.endpoint.traffic import Flow, Sent, gap_seconds, most_at_once


@dataclass
class Budget:
    """A budget limits how many more requests an audit may send, and until when."""

    requests_left: int
    deadline_s: float
    sent: int = 0

    def take(self, count: int) -> str:
        """Take ``count`` requests. Return the reason if they may not be sent, otherwise ""."""
        if count > self.requests_left:
            return f"--max-requests leaves {self.requests_left}, and this takes {count}"
        if time.perf_counter() >= self.deadline_s:
            return "--max-seconds are over"
        self.requests_left -= count
        self.sent += count
        return ""

    def give_back(self, count: int) -> None:
        """Give back requests that were taken and not sent."""
        self.requests_left += count
        self.sent -= count


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An attempt is one probe: what was sent when, and what became of it."""

    rows: tuple[Row, ...]
    sent: tuple[Sent, ...]
    outcomes: tuple[Outcome, ...]
    drafted: Drafted | None

    @property
    def answers(self) -> list[Answer]:
        return [each.answer for each in self.sent if each.answer is not None]

    @property
    def most_at_once(self) -> int:
        return most_at_once(self.answers)

    def count(self, likeness: Likeness) -> int:
        return sum(each.likeness is likeness for each in self.outcomes)


@dataclass
class EdgeAuditor:
    """An ``EdgeAuditor`` probes edges of one plan, with one budget and one reference."""

    request: EndpointRequest
    plan: Planned
    flow: Flow
    reference: Reference
    budget: Budget
    num_edges: int

    def edge(self, edge: Edge) -> EdgeFinding:
        """Probe one edge, and again if something is wrong or the batch did not reach it."""
        start = time.perf_counter()
        attempts: list[_Attempt] = []
        bare = EdgeFinding(
            edge=str(edge.batch_size),
            peak=edge.peak,
            changes=edge.changes,
            verdict=EdgeVerdict.NOT_RUN,
        )
        for _ in range(self.request.repeats + 1):
            if reason := self.budget.take(edge.peak):
                if not attempts:
                    return replace(bare, reason=reason)
                break
            # What was wrong is tried again as it was. Other prompts are more evidence on drafts.
            turn = 0 if any(map(_is_wrong, attempts)) else len(attempts)
            attempts.append(self._attempt(edge, turn, at_once=_fell_short(attempts, edge)))
            if self._is_settled(attempts, edge):
                break
        found = self._concluded(bare, attempts, edge)
        return replace(found, seconds=time.perf_counter() - start)

    def _attempt(self, edge: Edge, turn: int, *, at_once: bool) -> _Attempt:
        reference = self.reference
        rows = rows_of(
            edge,
            len(reference.prompts),
            self.request.max_new_tokens,
            reference.decode_s,
            turn=turn,
            at_once=at_once,
        )
        asks = [Ask(reference.prompts[row.prompt], row.max_tokens) for row in rows]
        before = read_counters(self.flow.server)
        sent = self.flow.together(asks, [row.delay_s for row in rows])
        drafted = read_counters(self.flow.server).drafted_since(before, len(sent))
        outcomes = [self._outcome(row, each) for row, each in zip(rows, sent, strict=True)]
        return _Attempt(rows, tuple(sent), tuple(outcomes), drafted)

    def _outcome(self, row: Row, sent: Sent) -> Outcome:
        if sent.answer is None:
            return Outcome(Likeness.WRONG, f"no answer: {sent.error}")
        if "tokens" not in self.request.judged:
            return Outcome(Likeness.EQUAL)
        expected = self.reference.expected[row.prompt].first(row.max_tokens)
        return judge(expected, sent.answer, self.reference.noise, is_exact=self.request.exact)

    def _is_settled(self, attempts: Sequence[_Attempt], edge: Edge) -> bool:
        last = attempts[-1]
        is_good = not last.count(Likeness.WRONG) and not last.count(Likeness.UNJUDGED)
        return (
            is_good
            and last.most_at_once >= edge.peak
            and not any(map(_is_wrong, attempts))
            and self._knows_acceptance(attempts, edge)
        )

    def _knows_acceptance(self, attempts: Sequence[_Attempt], edge: Edge) -> bool:
        """Return whether more drafts would decide no more.

        At a tier most steps of a probe have none.
        """
        found = self._acceptance(attempts, edge)
        has_drafts = any(each.drafted and each.drafted.num_drafts for each in attempts)
        wants_more = edge.is_steep and has_drafts and bool(self.reference.drafted)
        if found.answer is Acceptance.SAME:
            return not (wants_more and found.may_hide_a_loss)
        return found.answer is Acceptance.UNKNOWN and not wants_more

    def _acceptance(self, attempts: Sequence[_Attempt], edge: Edge) -> AcceptanceFound:
        if "acceptance" not in self.request.judged:
            return AcceptanceFound(Acceptance.UNKNOWN)
        # The same prompts alone, each as often as it was sent.
        by_prompt = self.reference.drafted
        counted = [each for each in attempts if each.drafted is not None and by_prompt]
        rows = [row for each in counted for row in each.rows]
        copies = len(rows) / max(len({row.prompt for row in rows}), 1)
        return judge_acceptance(
            sum_of(by_prompt[row.prompt] for row in rows),
            sum_of(each.drafted for each in counted if each.drafted is not None),
            num_edges=self.num_edges,
            copies=max(copies, 1.0),
            spec_tokens=self.plan.request.spec_tokens,
            first_only=self.plan.num_draft_lengths > 1,
            in_parts=self.plan.drafts_in_parts,
        )

    def _concluded(
        self, bare: EdgeFinding, attempts: Sequence[_Attempt], edge: Edge
    ) -> EdgeFinding:
        wrong = sum(map(_is_wrong, attempts))
        acceptance = self._acceptance(attempts, edge)
        reached = max(each.most_at_once for each in attempts)
        verdict, reason = _verdict(wrong, attempts, acceptance, reached, edge)
        shown = next(filter(_is_wrong, attempts), attempts[-1])
        worst_one = next(worst(shown.outcomes))
        details = worst_one.text if worst_one.likeness is not Likeness.EQUAL else ""
        if verdict is EdgeVerdict.WRONG and not wrong:
            details = acceptance.text
        gaps = [gap_seconds(each.answers) for each in attempts]
        gap_s = next((each for each in gaps if each is not None), None)
        near_ties, largest_gap = ties_in(o for each in attempts for o in each.outcomes)
        return replace(
            bare,
            verdict=verdict,
            reason=reason,
            attempts=len(attempts),
            wrong_attempts=wrong,
            requests=sum(len(each.sent) for each in attempts),
            near_ties=near_ties,
            largest_gap=largest_gap,
            most_at_once=reached,
            gap_ms=None if gap_s is None else gap_s * 1e3,
            acceptance=acceptance,
            details=details,
            rows=tuple(self._wrong_rows(shown)),
        )

    def _wrong_rows(self, attempt: _Attempt) -> Iterator[WrongRow]:
        for index, (row, sent, outcome) in enumerate(
            zip(attempt.rows, attempt.sent, attempt.outcomes, strict=True)
        ):
            if outcome.likeness not in (Likeness.WRONG, Likeness.UNJUDGED):
                continue
            expected = self.reference.expected[row.prompt].first(row.max_tokens)
            yield WrongRow(
                index,
                self.reference.prompts[row.prompt],
                row.max_tokens,
                row.delay_s,
                outcome.text,
                expected.tokens,
                sent.answer.tokens if sent.answer else (),
                outcome.position,
                outcome.gap,
            )


def _verdict(
    wrong: int,
    attempts: Sequence[_Attempt],
    acceptance: AcceptanceFound,
    reached: int,
    edge: Edge,
) -> tuple[EdgeVerdict, str]:
    """Return the verdict, and the reason if something was not decided."""
    if wrong:
        is_flaky = wrong < len(attempts)
        return (EdgeVerdict.FLAKY if is_flaky else EdgeVerdict.WRONG), ""
    if acceptance.answer is Acceptance.DIFFERS:
        return EdgeVerdict.WRONG, ""
    if reached < edge.peak:
        advice = "Raise --max-new-tokens"
        return EdgeVerdict.UNCLEAR, f"{reached} of {edge.peak} decoded together. {advice}"
    if attempts[-1].count(Likeness.UNJUDGED):
        return EdgeVerdict.UNCLEAR, "a difference cannot be judged without logprobs"
    if acceptance.answer is Acceptance.UNDECIDED:
        return EdgeVerdict.UNCLEAR, f"too few drafts: {acceptance.text}"
    if edge.is_steep and acceptance.may_hide_a_loss:
        return EdgeVerdict.HOLDS, f"too few drafts to see a small loss: {acceptance.text}"
    return EdgeVerdict.HOLDS, ""


def _is_wrong(attempt: _Attempt) -> bool:
    return attempt.count(Likeness.WRONG) > 0


def _fell_short(attempts: Sequence[_Attempt], edge: Edge) -> bool:
    """Return whether every attempt so far ended before the batch was full."""
    return bool(attempts) and max(each.most_at_once for each in attempts) < edge.peak
