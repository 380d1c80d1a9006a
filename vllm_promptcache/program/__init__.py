"""Prompt programs: Python functions that read as prompts and compile to PML (paper, section 3.2.4).

    def guide(days="three", overseas=False, city="paris"):
        "You are a travel guide."
        f"The trip takes {days:6} days."
        if overseas:
            "Mention visas."
        match city:
            case "paris":
                "Paris lies on the Seine."
            case "rome":
                "Rome lies on seven hills."

A prompt program holds nothing but
- strings: text. Each is a line of its own (a line feed ends it); strings of several lines are dedented;
  the first is text like any other, no docstring;
- fields of f-strings, `{name:LENGTH}`: a parameter of at most LENGTH tokens. The function's own default
  is the parameter's (None: a gap); without one it is required. Where the text would stand directly in
  the schema, it becomes a module named after its first field;
- `if condition:` a module named after the condition, as it is written; with `elif` and `else` all branches
  are members of a union, the `else` branch under the name `not_FLAG` (`not_FLAG_or_OTHER` after an `elif`);
- `match value:` a union named after the value, a member for each case, named as its constant or pattern is
  written; `case _:` is the member `otherwise`;
- `with system():`, `with user():`, `with assistant():` a message;
- calls of other prompt programs: a nested module named after the function.

Conditions, cases and arguments are any expressions over the function's parameters and what the function sees.
A name that is taken by another module next to it gets a number: `flag`, `flag_2`.

`compile_program` gives the schema, `prompt_for` the prompt for given arguments.
"""

from vllm_promptcache.program.compiler import compile_program, prompt_for
from vllm_promptcache.program.roles import assistant, system, user

__all__ = ["assistant", "compile_program", "prompt_for", "system", "user"]
