"""Wrong ways to send requests, as ``generator.open_loop`` has the right one: planted in launches under load."""

import os
from collections.abc import Sequence

from ray_jobs.load import generator, wire
from ray_jobs.load.crew import Crew
from ray_jobs.load.generator import Flow, Patience, clock


def waiting_for_answers(crew: Crew, due_ns: Sequence[int], patience: Patience) -> Flow:
    """A closed loop: the next request is sent when the last one is answered, however long that was due."""
    flow, (line, *_) = Flow(len(due_ns)), crew.lines
    start = clock()
    flow.due = [start + offset for offset in due_ns]
    for number, due in enumerate(flow.due):
        while clock() < due:
            pass
        flow.seen[number] = flow.sent[number] = clock()
        crew.queue.put(number)
        answer = wire.read(line.ends[0], wire.ANSWER.size)
        _, flow.began[number], flow.ended[number] = wire.ANSWER.unpack(answer)
        flow.done[number], flow.replica[number] = clock(), 0
    generator.end(crew, flow)
    return flow


def on_the_core_of_a_replica(crew: Crew, due_ns: Sequence[int], patience: Patience) -> Flow:
    """Looks at the clock all the time where a replica computes."""
    os.sched_setaffinity(0, crew.lines[0].cores)
    return generator.open_loop(crew, due_ns, patience)


def dropping_some(crew: Crew, due_ns: Sequence[int], patience: Patience) -> Flow:
    """A queue that forgets every seventh request."""
    flow = generator.open_loop(crew, due_ns, patience)
    for number in range(0, flow.count, 7):
        flow.done[number] = -1
    return flow
