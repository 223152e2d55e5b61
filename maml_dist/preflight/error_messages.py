"""What torch and a user's code raise, in one line and in words for this place."""

from maml_dist.core.users_line import users_line

# Not `Exception`: what is none of these is a mistake of this package, and keeps its traceback.
FAILURES = (
    *(RuntimeError, AttributeError, TypeError, KeyError, IndexError, ValueError),
    *(ArithmeticError, AssertionError),
)

SAID = {  # what torch says, in words for this place
    "access data pointer": "it hands a tensor to numpy, or to an operation of torch that reads its "
    "memory: compute with other operations of torch",
    "calling .item()": "it reads a tensor as a number or decides by it, which vmap cannot follow: "
    "use torch.where",
    "a trace cannot follow": "it reads a tensor as a number or an array, or decides by it, which a "
    "trace cannot follow: use torch.where",
    "custom_function_call": "a custom autograd.Function cannot be traced",
    "support saved tensor hooks": "torch.utils.checkpoint cannot be used; engine.memory=steps "
    "saves memory too",
    "does not require grad and does not have a grad_fn": "it differentiates by torch.autograd.grad "
    "or backward() where nothing is recorded, as in a validation: use torch.func.grad",
}
_BARE = (KeyError, IndexError, ArithmeticError, AssertionError)  # whose text alone says too little


def in_words(error: Exception) -> str:
    """What an error says, in one line, not without end, and where a user's code raised it."""
    where = users_line(error)
    return f"{_said(error)} ({where})" if where else _said(error)


def _said(error: Exception) -> str:
    for part, words in SAID.items():
        if part in str(error):
            return words
    lines = (line.strip() for line in str(error).splitlines())
    line = next((line for line in lines if line), repr(error))
    if isinstance(error, _BARE) and not line.startswith(type(error).__name__):
        line = f"{type(error).__name__}: {line}"
    return line if len(line) <= 200 else f"{line[:200]} …"
