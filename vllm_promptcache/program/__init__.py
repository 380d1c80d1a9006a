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
- `if flag:` a module named after the flag; with `elif` and `else` all branches are members of a union,
  the `else` branch under the name `not_FLAG` (`not_FLAG_or_OTHER` after an `elif`);
- `match value:` a union named after the value, a member for each `case "name":`, and `case _:` is the
  member `otherwise`;
- calls of other prompt programs: a nested module named after the function.

`compile_program` gives the schema, `prompt_for` the prompt for given arguments.
"""

from vllm_promptcache.program.compiler import compile_program, prompt_for

__all__ = ["compile_program", "prompt_for"]
