"""The commands of ``python -m chatbot``: train, chat, evaluate, export."""

import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from chatbot import checkpoint, corpus, training
from chatbot.config import ATTENTIONS, OPTIMIZERS, PRESETS, Options
from chatbot.console import HELP, Commands, ending, prepare
from chatbot.errors import UsageError, one_of
from chatbot.talk import Speaker, readable
from chatbot.variants import MODELS, VARIANTS, torchscript
from chatbot.vocabulary import Vocabulary


class ChatbotCommands(Commands):
    """``python -m chatbot``."""

    program = "chatbot"


app = typer.Typer(
    cls=ChatbotCommands,
    epilog=HELP,
    help="Train, try, evaluate and export the tutorial's chatbot.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

EXP_LIMIT = 700.0  # nats; beyond it a float overflows

ModelOption = Annotated[str, typer.Option(help=f"{MODELS}.")]
CorpusOption = Annotated[
    str,
    typer.Option(
        "--corpus", help="chitchat, a .tsv (prompt, tab, reply), or a path of the Cornell Movie-Dialogs Corpus."
    ),
]


def _number_or_none(text: str) -> float | None:
    try:
        return None if text == "none" else float(text)
    except ValueError:
        raise UsageError(f"{text!r} is neither a number nor 'none'") from None


def _whole_or_none(name: str, text: str) -> int | None:
    try:
        return None if text == "none" else int(text)
    except ValueError:
        raise UsageError(f"{name} {text!r} is neither a whole number nor 'none'") from None


def _require_file(out: Path) -> None:
    if not out.parent.is_dir():
        raise UsageError(f"the folder of --out does not exist: {out.parent}")
    if out.is_dir():
        raise UsageError(f"--out is a folder, give a file: {out}")


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):.2f}" if loss < EXP_LIMIT else "beyond counting"


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="File for the best checkpoint.")],
    size: Annotated[str, typer.Option(help=f"Preset of sizes: {', '.join(PRESETS)}.")] = "small",
    source: Annotated[str, typer.Option("--corpus", help="chitchat, a .tsv or .txt, or a Cornell path.")] = "chitchat",
    min_count: Annotated[
        int, typer.Option(min=1, help="Drop pairs with a word that occurs less often.")
    ] = corpus.MIN_COUNT,
    attention: Annotated[str, typer.Option(help=f"Attention: {', '.join(ATTENTIONS)}.")] = "dot",
    dropout: Annotated[float, typer.Option(help="Dropout probability.")] = 0.1,
    iterations: Annotated[int, typer.Option(help="Maximum number of batches.")] = 4000,
    batch: Annotated[int, typer.Option(help="Pairs per batch.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of the encoder.")] = 1e-4,
    decoder_learning_ratio: Annotated[
        float, typer.Option(help="Factor by which the decoder learns faster than the encoder.")
    ] = 5.0,
    optimizer: Annotated[str, typer.Option(help=f"Optimizer: {', '.join(OPTIMIZERS)}.")] = "adam",
    clip: Annotated[str, typer.Option(help="Maximum gradient norm of each network, or none.")] = "50",
    teacher_forcing: Annotated[float, typer.Option(help="Probability of teacher forcing, drawn per batch.")] = 1.0,
    validate_every: Annotated[int, typer.Option(help="Iterations between validations.")] = 200,
    patience: Annotated[str, typer.Option(help="Stop after this many validations without improvement, or none.")] = "5",
    seed: Annotated[int, typer.Option(help="Seed for weights and batches.")] = 0,
    split_seed: Annotated[
        int | None, typer.Option(help="Seed for the choice of held-out pairs. [default: --seed]")
    ] = None,
    device: Annotated[str, typer.Option(help="Device to train on: cpu or cuda.")] = "cpu",
    half: Annotated[bool, typer.Option("--half", help="Store the weights in 16 bits.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from OUT.resume.")] = False,
) -> None:
    """Train a chatbot; OUT always holds the best one so far by validation loss."""
    if size not in PRESETS:
        raise one_of("size", size, list(PRESETS))
    training.require_device(device)
    _require_file(out)
    if resume and not training.state_path(out).is_file():
        raise UsageError(f"nothing to resume: {training.state_path(out)} does not exist")
    options = Options(
        iterations=iterations,
        batch=batch,
        learning_rate=learning_rate,
        decoder_learning_ratio=decoder_learning_ratio,
        optimizer=optimizer,
        clip=_number_or_none(clip),
        teacher_forcing=teacher_forcing,
        validate_every=validate_every,
        patience=_whole_or_none("patience", patience),
        seed=seed,
        split_seed=split_seed,
    )
    read = corpus.load(source)
    pairs = corpus.short_pairs(read.pairs)
    words = Vocabulary.of_pairs(pairs, min_count)
    usable = corpus.trim(pairs, min_count)
    config = replace(PRESETS[size], vocabulary=len(words), attention=attention, dropout=dropout)
    console = Console(stderr=True)
    console.print(f"{len(usable):,} of {len(pairs):,} short pairs, {len(words):,} tokens")
    if read.notice:
        console.print(f"corpus {source}: {read.notice}", markup=False)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=iterations)

        def report(progress: training.Progress) -> None:
            line = f"train {progress.train_loss:.3f}  validation {progress.validation_loss:.3f}"
            bar.update(task, description=line)
            bar.console.print(
                f"iteration {progress.iteration:>6}  {line}  perplexity {_perplexity(progress.validation_loss)}"
            )

        trained = training.fit(
            config,
            usable,
            words,
            options,
            out,
            device=device,
            resume=resume,
            half=half,
            notes={"corpus": source, "min_count": min_count},
            on_iteration=lambda iteration: bar.update(task, completed=iteration),
            on_validation=report,
        )
    loss = trained.notes["validation_loss"]
    typer.echo(
        f"{out}: validation loss {loss:.4f}, perplexity {_perplexity(loss)}, at iteration {trained.notes['iteration']}"
    )


@app.command()
def chat(
    model: ModelOption = "small",
    variant: Annotated[str, typer.Option(help=f"Variant to run: {', '.join(VARIANTS)}.")] = "eager",
    time: Annotated[bool, typer.Option("--time", help="Show each reply's latency.")] = False,
) -> None:
    """Talk to the chatbot; q, quit or the end of input leaves. Lines from a pipe are answered one by one."""
    speaker = Speaker(checkpoint.open_model(model, need_trained=True), variant)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401  (line editing and history for input)

        typer.echo("Say something; q leaves.")
    while (line := _read_line(interactive)) is not None and line.strip() not in ("q", "quit"):
        if not line.strip():
            continue
        answer = speaker.answer(line)
        if answer.unknown:
            typer.echo(f"(unknown: {', '.join(word or 'no words' for word in answer.unknown)})", err=True)
        took = f"  ({answer.latency_ms:.1f} ms)" if time else ""
        typer.echo(f"Bot: {answer.text or '...'}{took}")


def _read_line(interactive: bool) -> str | None:
    try:
        return input("> " if interactive else "")
    except (EOFError, KeyboardInterrupt):
        return None


@app.command()
def evaluate(
    model: ModelOption = "small",
    source: CorpusOption = "chitchat",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line.")] = False,
) -> None:
    """Report the perplexity on held-out pairs, and ten sample replies."""
    trained = checkpoint.open_model(model, need_trained=True)
    pairs = [
        p for p in corpus.short_pairs(corpus.load(source).pairs) if all(trained.vocabulary.knows(side) for side in p)
    ]
    if not pairs:
        raise UsageError(f"corpus {source!r} has no pair whose words the model knows")
    held_out = held_out_pairs(trained, source, pairs)
    judged = held_out or pairs
    forced, free = (
        training.validation_loss(trained.chatbot, judged, trained.vocabulary, teacher_forced=way)
        for way in (True, False)
    )
    speaker = Speaker(trained)
    samples = [(p.prompt, speaker.answer(p.prompt).text) for p in judged[:: max(1, len(judged) // 10)][:10]]
    which = "held-out" if held_out else "all"
    typer.echo(f"{trained.name}: {len(judged):,} {which} pairs of {source}")
    typer.echo(
        f"perplexity {_perplexity(forced)} (loss {forced:.4f} per token, teacher forced; {free:.4f} free running)"
    )
    for prompt, reply in samples:
        typer.echo(f"  > {readable(prompt)}\n    {reply}")
    if as_json:
        result = {"pairs": len(judged), "held_out": bool(held_out), "loss": forced, "free_running_loss": free}
        perplexity = math.exp(forced) if forced < EXP_LIMIT else None
        typer.echo(json.dumps({**result, "perplexity": perplexity, "samples": samples}))


def held_out_pairs(trained: checkpoint.Trained, source: str, pairs: list[corpus.Pair]) -> list[corpus.Pair]:
    """Returns the pairs of ``source`` that training held out; none if the model was trained on another corpus."""
    options = trained.notes.get("options")
    if not isinstance(options, dict) or not {"validation_share", "seed"} <= options.keys():
        return []
    if trained.notes.get("corpus") != source:
        return []
    names = ("validation_share", "seed", "split_seed")  # older checkpoints have no seed of the split
    return Options(**{name: options[name] for name in names if name in options}).split(pairs)[1]


@app.command()
def export(
    model: ModelOption = "small",
    out: Annotated[Path | None, typer.Option(help="The file to write.")] = None,
    device: Annotated[str, typer.Option(help="Device it will run on: cpu or cuda.")] = "cpu",
    graph: Annotated[bool, typer.Option("--graph", help="Print the scripted search's graph.")] = False,
) -> None:
    """Save the TorchScript search and its vocabulary as one file that needs only PyTorch."""
    training.require_device(device)
    if out is not None:
        _require_file(out)
    elif not graph:
        raise UsageError("nothing to do; give --out FILE, --graph, or both")
    trained = checkpoint.open_model(model)
    search = torchscript.script(trained.chatbot.to(device), device)
    if graph:
        typer.echo(str(search.graph))
    if out is not None:
        words = json.dumps(trained.vocabulary.words)
        with torchscript.quiet():
            checkpoint.replace_whole(
                out, lambda path: torch.jit.save(search, str(path), _extra_files={"vocabulary.json": words})
            )
        typer.echo(
            f"{out}: forward(prompts, lengths, max_length) -> (tokens, probabilities), vocabulary.json inside",
            err=graph,
        )


def main() -> None:
    """Runs the command line; a user's mistake is one line and exit code 2."""
    prepare()
    with ending(ChatbotCommands.program):
        app(prog_name="python -m chatbot")
