"""mobizo.h through ctypes. It imports nothing of the package, whose own libraries must not be in a process
that has libmobizo.so: the tests run the functions below in a process of their own.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from dataclasses import dataclass, field
from typing import Any

STATUSES = ("OK", "INVALID", "SYSTEM", "CANCELLED", "JOURNAL_LOST", "BUSY", "NO_MEMORY", "INTERNAL")
NUMBERS = {"i": c_int64, "d": c_double, "s": c_char_p}
Found = dict[str, Any]


def struct(name: str, /, **members: str | type) -> type[ctypes.Structure]:
    """A struct of mobizo.h, whose first member is its size."""
    fields = [("size", c_uint64), *((key, NUMBERS.get(kind, kind)) for key, kind in members.items())]  # type: ignore[arg-type]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


OPTIONS: dict[str, str | type] = {
    "steps": "i", "eps": "d", "lr": "d", "lr_schedule": "s", "normalize": "i", "run_seed": "i",
    "journal": "s", "sync_every": "i", "resume": "i", "eval_every": "i", "validation_rows": "i", 
    "keep": "s", "stop_unsteady": "i", "objective": c_void_p, "reward_shaping": "s",
}  # fmt: skip
TrainOptions = struct("mobizo_train_options", **OPTIONS)
Step = struct(
    "mobizo_step", step="i", steps="i", loss="d", lr="d", seconds="d", update_norm="d", skipped="i",
    unsteady="i", losses=POINTER(c_float), projected_gradients=POINTER(c_float), loss_count="i",
    gradient_count="i",
)  # fmt: skip
SCORES = {"loss": "d", "accuracy": "d", "balanced_accuracy": "d"}
Validation = struct("mobizo_validation", step="i", **SCORES)
OnStep = ctypes.CFUNCTYPE(c_int32, POINTER(Step), c_void_p)
OnEvaluation = ctypes.CFUNCTYPE(c_int32, POINTER(Validation), c_void_p)
OnWarning = ctypes.CFUNCTYPE(None, c_char_p, c_void_p)
Callbacks = struct(
    "mobizo_callbacks", user=c_void_p, on_step=OnStep, on_evaluation=OnEvaluation, on_warning=OnWarning
)
COUNTS = ("steps", "stopped", "resumed_steps", "skipped_steps", "best_step", "evaluations")
TrainResult = struct("mobizo_train_result", **dict.fromkeys(COUNTS, "i"), **SCORES)
Readout = struct("mobizo_readout", rank="i", rows="i", ridge="d", loss="d", loss_before="d", seconds="d")
Evaluation = struct("mobizo_evaluation", rows="i", classes="i", **SCORES)

TOKENIZE = {
    "text_column": "s", "label_column": "s", "answers": "s", "steps": "i", "seed": "i", "train_rows": "i",
    "validation_rows": "i", "test_rows": "i", "max_length": "i",
}  # fmt: skip
TokenizeOptions = struct("mobizo_tokenize_options", **TOKENIZE)
GENERATE = {"max_new_tokens": "i", "temperature": "d", "top_k": "i", "top_p": "d", "seed": "i"}
GenerateOptions = struct("mobizo_generate_options", **GENERATE)
WRITTEN = ("tokens", "ended", "reused", "prefilled")
Generated = struct("mobizo_generated", **dict.fromkeys(WRITTEN, "i"), prefill_seconds="d", decode_seconds="d")
RewardOf = ctypes.CFUNCTYPE(
    c_int32, c_char_p, POINTER(c_char_p), c_int64, c_char_p, POINTER(c_double), c_void_p
)
Objective = struct(
    "mobizo_objective", reward=RewardOf, user=c_void_p, tokenizer=c_void_p, name="s", **GENERATE
)
OnToken = ctypes.CFUNCTYPE(c_int32, c_int64, c_char_p, c_void_p)
ENDED = ("stop", "length", "context", "caller")


class Message(ctypes.Structure):
    """mobizo_message."""

    _fields_ = (("role", c_char_p), ("content", c_char_p))


def as_dict(found: ctypes.Structure) -> Found:
    return {name: getattr(found, name) for name, *_ in found._fields_ if name != "size"}


@dataclass
class Files:
    """What a process needs to load the library: the runtime's libraries first, for an editable installation
    is not where it looks for them.
    """

    runtime: Sequence[str]
    library: str


class CError(Exception):
    """A status other than MOBIZO_OK."""

    def __init__(self, status: str, message: str, errno: int) -> None:
        super().__init__(status, message, errno)
        self.status, self.message, self.errno = status, message, errno


class Library:
    """The functions of mobizo.h, each with its arguments converted as ctypes does by default."""

    def __init__(self, files: Files) -> None:
        for path in files.runtime:
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        self.c = ctypes.CDLL(files.library)
        for name in ("version", "last_message", "status_name"):
            getattr(self.c, f"mobizo_{name}").restype = c_char_p
        self.c.mobizo_free.restype = None

    def call(self, name: str, *arguments: Any) -> None:
        """mobizo_NAME. Raises CError."""
        status = getattr(self.c, f"mobizo_{name}")(*arguments)
        if status != 0:
            message = self.c.mobizo_last_message().decode()
            raise CError(STATUSES[status], message, self.c.mobizo_last_errno())

    def failure(self, name: str, *arguments: Any) -> str:
        """The status and the message with which it fails."""
        try:
            self.call(name, *arguments)
        except CError as error:
            return f"{error.status}: {error.message}"
        return "OK"

    def text(self, name: str, *arguments: Any) -> str:
        """What it gives as an allocated text."""
        text = c_void_p()
        self.call(name, *arguments, byref(text))
        assert text.value is not None
        found = ctypes.string_at(text.value).decode()
        self.c.mobizo_free(text)
        return found

    def options(self, kind: str = "train", **changes: Any) -> Any:
        options = {"train": TrainOptions, "tokenize": TokenizeOptions, "generate": GenerateOptions}[kind]()
        self.call(f"{kind}_options_init", byref(options), c_uint64(ctypes.sizeof(options)))
        for name, value in changes.items():
            setattr(options, name, value.encode() if isinstance(value, str) else value)
        return options


@dataclass
class Run:
    """What a training told, and how it ended."""

    steps: list[Found] = field(default_factory=list)
    validations: list[Found] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    end: str = ""
    result: Found = field(default_factory=dict)


class Program:
    def __init__(self, library: Library, path: str, threads: int = 0) -> None:
        self.library, self.handle = library, c_void_p()
        library.call("program_open", path.encode(), c_int64(threads), byref(self.handle))

    def call(self, name: str, *arguments: Any) -> None:
        self.library.call(name, self.handle, *arguments)

    def failure(self, name: str, *arguments: Any) -> str:
        return self.library.failure(name, self.handle, *arguments)

    def train(
        self,
        dataset: str,
        *,
        on_step: Callable[[int], int] = lambda step: 0,
        on_evaluation: Callable[[int], int] = lambda step: 0,
        **options: Any,
    ) -> Run:
        run, result = Run(), TrainResult(size=ctypes.sizeof(TrainResult))

        def step_made(step: Any, user: int) -> int:
            told = {"user": user, **as_dict(step.contents)}
            for name, count in (("losses", "loss_count"), ("projected_gradients", "gradient_count")):
                told[name] = told[name][: told.pop(count)]
            run.steps.append(told)
            return on_step(told["step"])

        def validated(validation: Any, user: int) -> int:
            run.validations.append(as_dict(validation.contents))
            return on_evaluation(validation.contents.step)

        callbacks = Callbacks(
            ctypes.sizeof(Callbacks), 42, OnStep(step_made), OnEvaluation(validated),
            OnWarning(lambda sentence, user: run.warnings.append(sentence.decode())),
        )  # fmt: skip
        arguments = byref(self.library.options(**options)), byref(callbacks), byref(result)
        run.end = self.failure("train", dataset.encode(), *arguments)
        run.result = as_dict(result)
        return run

    def values(self) -> list[float]:
        """Every LoRA-B."""
        count = c_int64()
        self.call("adapter_size", byref(count))
        values = (c_float * count.value)()
        self.call("adapter_get", values, count)
        return list(values)

    def set_values(self, values: Sequence[float]) -> None:
        self.call("adapter_set", (c_float * len(values))(*values), c_int64(len(values)))

    def evaluate(self, dataset: str, split: str, rows: int) -> tuple[Found, list[float], list[int]]:
        found = Evaluation(size=ctypes.sizeof(Evaluation))
        scores, labels = POINTER(c_float)(), POINTER(c_int32)()
        wanted = byref(found), byref(scores), byref(labels)
        self.call("evaluate", dataset.encode(), split.encode(), c_int64(rows), *wanted)
        numbers = scores[: found.rows * found.classes], labels[: found.rows]
        self.library.c.mobizo_free(scores)
        self.library.c.mobizo_free(labels)
        return as_dict(found), *numbers

    def generate(
        self,
        prompt: Sequence[int],
        tokenizer: Any = None,
        stop_after: int = 0,
        cancel_after: int = 0,
        **options: Any,
    ) -> Found:
        """What it writes; the callback ends it, or cancels the call, after so many tokens."""
        told, tokens = list[tuple[int, str]](), POINTER(c_int64)()
        generated = Generated(size=ctypes.sizeof(Generated))

        def on_token(token: int, text: bytes, user: int) -> int:
            told.append((token, text.decode()))
            if len(told) == cancel_after:
                self.call("cancel")
            return int(len(told) == stop_after)

        self.call(
            "generate", tokenizer, (c_int64 * len(prompt))(*prompt), c_int64(len(prompt)),
            byref(self.library.options("generate", **options)), OnToken(on_token), None, byref(generated),
            byref(tokens),
        )  # fmt: skip
        found = {**as_dict(generated), "tokens": tokens[: generated.tokens], "told": told}
        self.library.c.mobizo_free(tokens)
        return {**found, "ended": ENDED[found["ended"]]}


# ---- what the tests run in a process of its own ---


def train_and_save(files: Files, program: str, dataset: str, adapter: str, **options: Any) -> Run:
    opened = Program(Library(files), program)
    run = opened.train(dataset, **options)
    opened.call("adapter_save", adapter.encode())
    opened.call("program_close")
    return run


Ended = dict[str, tuple[Run, list[float]]]


def cancelled_runs(files: Files, program: str, dataset: str, **options: Any) -> Ended:
    """Runs that end early, each in its way, and the adapters that they leave."""
    library, runs = Library(files), Ended()

    def ended(name: str, opened: Program, **ways: Any) -> None:
        runs[name] = opened.train(dataset, **options, **ways), opened.values()

    ended("on_step", Program(library, program), on_step=lambda step: int(step == 2))
    ended("on_evaluation", Program(library, program), on_evaluation=lambda step: int(step == 4))
    opened = Program(library, program)

    def from_another_thread(step: int) -> int:
        if step == 3:
            thread = threading.Thread(target=opened.call, args=("cancel",))
            thread.start()
            thread.join()
        return 0

    ended("cancel", opened, on_step=from_another_thread)
    opened = Program(library, program)
    opened.call("cancel")  # of nothing
    ended("to the end", opened)
    return runs


def cancelled_forwards(files: Files, program: str, dataset: str) -> list[str]:
    """How scoring and a training end that another thread cancels all the time."""
    opened, told, over = Program(Library(files), program), list[str](), threading.Event()

    def cancel() -> None:
        while not over.is_set():
            opened.call("cancel")

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        path, all_rows = dataset.encode(), c_int64(0)
        while not told or told[0] == "OK":  # two forwards may be over before the other thread runs
            told[:] = [opened.failure("evaluate", path, b"test", all_rows, None, None, None)]
        told.append(opened.failure("train", path, None, None, None))
    finally:
        over.set()
        thread.join()
    told.append(opened.failure("evaluate", path, b"test", all_rows, None, None, None))
    return told


def lost_journal(files: Files, program: str, dataset: str, journal: str, **options: Any) -> Ended:
    """A run whose journal is removed after step 3."""
    opened = Program(Library(files), program)

    def remove(step: int) -> int:
        if step == 2:
            os.remove(journal)
        return 0

    return {"lost": (opened.train(dataset, on_step=remove, journal=journal, **options), opened.values())}


def calls_in_a_callback(files: Files, program: str, dataset: str) -> list[str]:
    opened, told = Program(Library(files), program), list[str]()

    def on_step(step: int) -> int:
        told.append(opened.failure("program_close"))
        told.append(opened.failure("adapter_size", byref(c_int64())))
        told.append(opened.failure("train", dataset.encode(), None, None, None))
        return 1

    told.append(opened.train(dataset, on_step=on_step, eval_every=0, keep="last").end)
    told.append(opened.failure("program_close"))
    return told


def in_two_threads(files: Files, program: str, dataset: str, **options: Any) -> list[list[float]]:
    """The adapters of two programs that are trained at once, and of a third one alone."""
    library = Library(files)
    programs = [Program(library, program) for _ in range(3)]
    threads = [
        threading.Thread(target=opened.train, args=(dataset,), kwargs=options) for opened in programs[:2]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    programs[2].train(dataset, **options)
    return [opened.values() for opened in programs]


def scores_and_adapters(files: Files, program: str, dataset: str, adapter: str, saved: str) -> Found:
    """An adapter from a file, scored, taken out, and given to another program."""
    library = Library(files)
    first, second = Program(library, program), Program(library, program)
    first.call("adapter_load", adapter.encode())
    second.set_values(first.values())
    second.call("adapter_save", saved.encode())
    return {
        "description": library.text("program_description", first.handle),
        "test": first.evaluate(dataset, "test", 0),
        "validation": second.evaluate(dataset, "validation", 3),
        "values": first.values(),
        "kinds": [library.text("file_info", path.encode()) for path in (program, dataset, saved)],
        "version": library.c.mobizo_version().decode(),
    }


def replayed(files: Files, program: str, journal: str, until: int) -> tuple[int, list[float]]:
    opened, steps = Program(Library(files), program), c_int64()
    opened.call("replay", journal.encode(), c_int64(until), byref(steps))
    return steps.value, opened.values()


def read_out(files: Files, program: str, dataset: str, rows: int, adapter: str) -> Found:
    opened, found = Program(Library(files), program), Readout(size=ctypes.sizeof(Readout))
    opened.call("read_out", dataset.encode(), c_int64(rows), c_int64(0), byref(found))
    opened.call("adapter_save", adapter.encode())
    return as_dict(found)


def tokenized(
    files: Files, program: str, texts: str, tokenizer: str, datasets: Sequence[tuple[str, Found]]
) -> list[str]:
    """How data sets come out, each with its options, and the warnings."""
    library, told = Library(files), list[str]()
    opened = Program(library, program)
    callbacks = Callbacks(
        ctypes.sizeof(Callbacks), None, OnStep(), OnEvaluation(),
        OnWarning(lambda sentence, user: told.append(sentence.decode())),
    )  # fmt: skip
    for dataset, changes in datasets:
        paths = (path.encode() for path in (texts, tokenizer, dataset))
        options = library.options("tokenize", **changes)
        told.append(opened.failure("tokenize", *paths, byref(options), byref(callbacks)))
    return told


def written(files: Files, program: str, adapter: str, calls: Sequence[Found]) -> list[Found]:
    """What calls of generate give, one after the other, by an adapter."""
    opened = Program(Library(files), program)
    opened.call("adapter_load", adapter.encode())
    return [opened.generate(**call) for call in calls]


def cancelled_answers(
    files: Files, program: str, adapter: str, prompts: Sequence[Sequence[int]]
) -> tuple[list[str], list[Found]]:
    """How answers end that are cancelled, one by its callback after two tokens, one by another thread in its
    prompt; and what the program writes to the same prompts then.
    """
    opened, told, over = Program(Library(files), program), list[str](), threading.Event()
    opened.call("adapter_load", adapter.encode())
    try:
        opened.generate(prompts[0], cancel_after=2)
    except CError as error:
        told.append(f"{error.status}: {error.message}")

    def cancel() -> None:
        while not over.is_set():
            opened.call("cancel")

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        said = ""
        while "after 0 tokens" not in said:  # the prompt may be over before the other thread runs
            for prompt in prompts:  # of the second one nothing is in the cache
                tokens, count = (c_int64 * len(prompt))(*prompt), c_int64(len(prompt))
                said = opened.failure("generate", None, tokens, count, *[None] * 5)
        told.append(said)
    finally:
        over.set()
        thread.join()
    return told, [opened.generate(prompt) for prompt in reversed(prompts)]


def refused_objectives(
    files: Files, program: str, dataset: str, path: str, journal: str, changes: Sequence[Found]
) -> list[str]:
    """How runs end whose objective has these members in place of good ones; none may reach its reward."""
    library, tokenizer, told = Library(files), c_void_p(), list[str]()
    opened = Program(library, program)
    library.call("tokenizer_open", path.encode(), byref(tokenizer))

    def reward(*arguments: Any) -> int:
        told.append("a reward was asked for")
        return 1

    for change in changes:
        objective = Objective()
        library.call("objective_init", byref(objective), c_uint64(ctypes.sizeof(objective)))
        objective.reward, objective.tokenizer = RewardOf(reward), tokenizer
        for name, value in change.items():
            setattr(objective, name, RewardOf() if name == "reward" else value)
        told.append(opened.train(dataset, objective=ctypes.addressof(objective), journal=journal).end)
    return told


def rewarded(
    files: Files, program: str, dataset: str, path: str, end_after: int, how: str, **options: Any
) -> tuple[Run, list[float], list[tuple[str, list[str], str]]]:
    """A run by the rewards of `answer_score`, and what they were given for. Call `end_after` of the reward,
    from 1, ends the run by what it returns, by mobizo_cancel(), or by a number that is none.
    """
    library, tokenizer, told = Library(files), c_void_p(), list[tuple[str, list[str], str]]()
    opened, objective = Program(library, program), Objective()
    library.call("tokenizer_open", path.encode(), byref(tokenizer))
    library.call("objective_init", byref(objective), c_uint64(ctypes.sizeof(objective)))

    def reward(prompt: bytes, answers: Any, count: int, reference: bytes, rewards: Any, user: int) -> int:
        told.append((prompt.decode(), [answer.decode() for answer in answers[:count]], reference.decode()))
        for index, answer in enumerate(told[-1][1]):
            rewards[index] = answer_score(answer)
        if len(told) == end_after:
            rewards[0] = float("nan") if how == "number" else rewards[0]
            if how == "cancel":
                opened.call("cancel")
        return int(len(told) == end_after and how == "return")

    objective.reward, objective.tokenizer, objective.name = RewardOf(reward), tokenizer, b"scores"
    objective.max_new_tokens, objective.temperature, objective.seed = 6, 0.7, -3
    run = opened.train(dataset, **options, objective=ctypes.addressof(objective))
    return run, opened.values(), told


def answer_score(answer: str) -> float:
    return sum(answer.encode()) % 17 / 16


def answered(
    files: Files, program: str, path: str, messages: Sequence[tuple[str, str]], **options: Any
) -> Found:
    """A conversation in tokens, and its answer with texts."""
    library, tokenizer, ids, count = Library(files), c_void_p(), POINTER(c_int64)(), c_int64()
    opened = Program(library, program)
    library.call("tokenizer_open", path.encode(), byref(tokenizer))
    said = (Message * len(messages))(*((role.encode(), content.encode()) for role, content in messages))
    opened.call("chat_encode", tokenizer, said, c_int64(len(messages)), byref(ids), byref(count))
    prompt = ids[: count.value]
    library.c.mobizo_free(ids)
    return {"prompt": prompt, **opened.generate(prompt, tokenizer, **options)}


def unsaid(
    files: Files, program: str, path: str, conversations: Sequence[Sequence[tuple[str, bytes]]]
) -> list[str]:
    """How conversations of roles and contents come out in tokens."""
    library, tokenizer, found = Library(files), c_void_p(), list[str]()
    opened = Program(library, program)
    library.call("tokenizer_open", path.encode(), byref(tokenizer))
    for messages in conversations:
        said = (Message * len(messages))(*((role.encode(), content) for role, content in messages))
        taken = byref(POINTER(c_int64)()), byref(c_int64())
        found.append(opened.failure("chat_encode", tokenizer, said, c_int64(len(messages)), *taken))
    return found


def unwritten(files: Files, program: str, other: str) -> list[str]:
    """What is said where nothing can be written."""
    library, prompt, tokenizer = Library(files), (c_int64 * 2)(3, 4), c_void_p()
    opened = Program(library, program)
    library.call("tokenizer_open", other.encode(), byref(tokenizer))
    said = [
        opened.failure("generate", *arguments, None, None, None, None)
        for arguments in (
            (None, prompt, c_int64(2), None),
            (None, prompt, c_int64(0), None),
            (None, None, c_int64(2), None),
            (None, prompt, c_int64(2), byref(library.options("generate", temperature=-1.0))),
            (tokenizer, prompt, c_int64(2), None),
        )
    ]
    said.append(
        opened.failure("chat_encode", tokenizer, None, c_int64(1), byref(c_void_p()), byref(c_int64()))
    )
    return said


def tokens(files: Files, tokenizer: str, text: str) -> Found:
    library, handle = Library(files), c_void_p()
    library.call("tokenizer_open", tokenizer.encode(), byref(handle))
    encoded, ids, count, size = text.encode(), POINTER(c_int64)(), c_int64(), c_int64()
    library.call(
        "tokenizer_encode", handle, encoded, c_uint64(len(encoded)), c_int32(1), byref(ids), byref(count)
    )
    decoded, length, token = c_void_p(), c_uint64(), c_int64()
    library.call("tokenizer_decode", handle, ids, count, c_int32(1), byref(decoded), byref(length))
    library.call("tokenizer_size", handle, byref(size))
    library.call("tokenizer_id", handle, b"no such token", byref(token))
    found = {"ids": ids[: count.value], "text": ctypes.string_at(decoded.value or 0, length.value).decode()}
    refused = [
        library.failure(
            "tokenizer_encode", handle, b"\xff", c_uint64(1), c_int32(1), byref(ids), byref(count)
        ),
        library.failure("tokenizer_open", b"/nowhere/tokenizer.json", byref(c_void_p())),
        library.failure("adapter_size", handle, byref(c_int64())),
    ]
    library.call("tokenizer_close", handle)
    refused.append(library.failure("tokenizer_size", handle, byref(size)))
    return {**found, "size": size.value, "token": token.value, "refused": refused}


def refusals(files: Files, program: str, dataset: str, folder: str) -> dict[str, str]:
    """What bad calls say."""
    library, told = Library(files), dict[str, str]()
    opened, closed = Program(library, program), Program(library, program)
    closed.call("program_close")
    nothing, count, path = c_void_p(), c_int64(), dataset.encode()

    def check(name: str, function: str, *arguments: Any) -> None:
        told[name] = library.failure(function, *arguments)

    check("no place for the handle", "program_open", program.encode(), c_int64(0), None)
    check("no path", "program_open", None, c_int64(0), byref(nothing))
    check("no file", "program_open", b"/nowhere", c_int64(0), byref(nothing))
    check("another file", "program_open", path, c_int64(0), byref(nothing))
    check("threads", "program_open", program.encode(), c_int64(-1), byref(nothing))
    check("no program", "program_description", None, byref(nothing))
    check("closed", "adapter_size", closed.handle, byref(count))
    check("closed twice", "program_close", closed.handle)
    check("closed and cancelled", "cancel", closed.handle)
    check("made up", "adapter_size", c_void_p(0xDEADBEEF), byref(count))
    check("nothing to close", "program_close", None)
    check("no data set", "train", opened.handle, None, None, None, None)
    check("missing data set", "train", opened.handle, b"/nowhere", None, None, None)
    check("no options to set", "train_options_init", None, c_uint64(ctypes.sizeof(TrainOptions)))
    check("small options", "train_options_init", byref(TrainOptions()), c_uint64(8))
    for name, changes in {
        "steps": {"steps": 0},
        "schedule": {"lr_schedule": "step"},
        "no schedule": {"lr_schedule": None},
        "flag": {"resume": 2},
        "eval_every": {"eval_every": -2},
        "size": {"size": 8},
    }.items():
        check(name, "train", opened.handle, path, byref(library.options(**changes)), None, None)

    class Later(ctypes.Structure):
        _fields_ = (("known", TrainOptions), ("more", c_int64))

    later = Later(library.options(size=ctypes.sizeof(Later), steps=0), 0)
    check("later, of its default", "train", opened.handle, path, byref(later), None, None)
    later.more = 1
    check("later", "train", opened.handle, path, byref(later), None, None)
    check("result of no size", "train", opened.handle, path, None, None, byref(TrainResult()))
    check("callbacks of no size", "train", opened.handle, path, None, byref(Callbacks()), None)
    check("split", "evaluate", opened.handle, path, b"trial", c_int64(0), None, None, None)
    check("rows", "evaluate", opened.handle, path, b"test", c_int64(-1), None, None, None)
    check("count", "adapter_get", opened.handle, (c_float * 3)(), c_int64(3))
    opened.call("adapter_size", byref(count))
    bad = (c_float * count.value)()
    bad[1] = float("nan")
    check("not finite", "adapter_set", opened.handle, bad, count)
    check("no values", "adapter_set", opened.handle, None, count)
    check("onto the program", "adapter_save", opened.handle, program.encode())
    check("into nothing", "adapter_save", opened.handle, f"{folder}/no/adapter.safetensors".encode())
    check("another adapter", "adapter_load", opened.handle, path)
    check("no journal", "replay", opened.handle, path, c_int64(-1), None)
    check("rows to read out", "read_out", opened.handle, path, c_int64(-1), c_int64(0), None)
    check("no place for a text", "file_info", path, None)
    check("no ids", "tokenizer_encode", None, b"", c_uint64(0), c_int32(0), byref(nothing), byref(count))
    told["still works"] = opened.train(dataset, steps=1, eval_every=0, keep="last").end
    return told


def structs(files: Files) -> dict[str, int]:
    """The sizes that ctypes gives the structs of mobizo.h."""
    kinds = (
        TrainOptions, Objective, Step, Validation, Callbacks, TrainResult, Readout, Evaluation,
        TokenizeOptions, GenerateOptions, Generated,
    )  # fmt: skip
    return {kind.__name__: ctypes.sizeof(kind) for kind in kinds}
