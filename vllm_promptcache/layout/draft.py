"""From nodes to positions: what stands where, before units are made (PML page, "Positions")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from vllm_promptcache.errors import ChatTemplateError, IssueList, quote
from vllm_promptcache.layout.chat_template import RoleWords
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.layout.parts import NOWHERE, MessageSpan, Trailing
from vllm_promptcache.pml.limits import Limits
from vllm_promptcache.pml.nodes import (
    ModuleNode,
    ParameterNode,
    PoolNode,
    RoleNode,
    SchemaChild,
    SchemaNode,
    TextNode,
    ToolsNode,
    UnionNode,
)
from vllm_promptcache.pml.source import Place


@dataclass(frozen=True)
class Run:
    """Tokens that stand next to each other, from position `start` on."""

    token_ids: Sequence[int]
    start: int
    kept: bool
    place: Place

    @property
    def end(self) -> int:
        """One after the last token's position."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True)
class ParameterDraft:
    """A parameter, where it starts, and its default's tokens."""

    node: ParameterNode
    start: int
    default: Sequence[int]


@dataclass(frozen=True)
class UnionDraft:
    """A union and its span."""

    index: int
    node: UnionNode
    start: int
    end: int


# The index of a pool's member, which is in no mask.
MEMBER = -1


# Not frozen: filled while its children are walked.
@dataclass
class ModuleDraft:
    """A module, a pool or the schema, with its own runs and its children's drafts.

    `members` are a pool's, each from the pool's start on. `trailing` is the schema's own text behind a pool
    that has no length: the starts of these runs mean nothing. `tools` is the schema's
    place for those of requests.
    """

    index: int
    node: ModuleNode | SchemaNode | PoolNode
    path: str
    start: int
    end: int = 0
    union: UnionDraft | None = None
    runs: list[Run] = field(default_factory=list)
    messages: list[MessageSpan] = field(default_factory=list)
    parameters: list[ParameterDraft] = field(default_factory=list)
    children: list[ModuleDraft] = field(default_factory=list)
    unions: list[UnionDraft] = field(default_factory=list)
    members: list[ModuleDraft] = field(default_factory=list)
    trailing: list[Trailing] = field(default_factory=list)
    tools: ToolsNode | None = None
    has_bos: bool = False

    @cached_property
    def children_by_name(self) -> dict[str, ModuleDraft]:
        """For once all children are there."""
        return {child.node.name: child for child in self.children}

    def largest(self, num_positions: int) -> ModuleDraft | None:
        """The innermost module, perhaps of a union, that alone takes more than so many positions."""
        found, children = None, self.children
        while children:
            child = max(children, key=lambda child: child.end - child.start)
            if child.end - child.start <= num_positions:
                break
            found, children = child, child.children
        return found

    @property
    def cache(self) -> bool:
        """Whether the module's own text is encoded once and reused."""
        return not isinstance(self.node, ModuleNode) or self.node.cache


def draft_schema(
    schema: SchemaNode, encoder: TextEncoder, max_model_len: int, issues: IssueList, limits: Limits
) -> ModuleDraft:
    """Lays out a schema from position 0, depth first in document order.

    Adds an issue for each parameter's text that is too long and each role that can't be rendered. Raises
    PMLError, with the issues so far, at the parameter that takes the schema beyond its placeholders.
    """
    return _Drafter(encoder, max_model_len, issues, limits).schema(schema)


def draft_text(
    node: ModuleNode, children: Sequence[SchemaChild], path: str, start: int, encoder: TextEncoder
) -> ModuleDraft:
    """A module of text only, its `children`, from a position on."""
    draft = ModuleDraft(MEMBER, node, path, start)
    position = start
    for child in children:
        assert isinstance(child, TextNode), "such a module has text only"
        if token_ids := encoder.encode(child.text):
            draft.runs.append(Run(token_ids, position, True, child.place))
            position += len(token_ids)
    draft.end = position
    return draft


class _Drafter:
    def __init__(self, encoder: TextEncoder, max_model_len: int, issues: IssueList, limits: Limits) -> None:
        self._encoder = encoder
        self._max_model_len = max_model_len
        self._issues = issues
        self._max_placeholders = limits.max_placeholders
        self._num_placeholders = 0
        self._num_modules = 0
        self._num_unions = 0
        # The role of the message before, in document order: templates write what lies between two.
        self._previous_role: str | None = None
        # The pool without a length that has been laid out: nothing behind it has a place.
        self._open_pool: PoolNode | None = None
        # The message that is laid out, and which side of it.
        self._message: tuple[int | None, int] = (None, 0)

    def schema(self, node: SchemaNode) -> ModuleDraft:
        draft = ModuleDraft(self._next_index(), node, node.name, 0)
        position = 0
        bos = self._bos(node)
        if bos is not None:
            draft.has_bos = True
            position = self._append(draft, [bos], 0, node.place)
        draft.end = self._children(draft, node.children, position)
        return draft

    def _bos(self, schema: SchemaNode) -> int | None:
        bos = self._encoder.bos
        if bos is None and _has_role(schema.children):
            try:
                bos = self._encoder.template_bos
            except ChatTemplateError:
                return None  # the role itself gets the issue
        if bos is None:
            return None
        first = next((child for child in schema.children if isinstance(child, TextNode | RoleNode)), None)
        if isinstance(first, TextNode) and self._encoder.encode(first.text)[:1] == [bos]:
            return None
        return bos

    def _next_index(self) -> int:
        self._num_modules += 1
        return self._num_modules - 1

    def _children(self, draft: ModuleDraft, children: Sequence[SchemaChild], position: int) -> int:
        """Lays out children from `position` on; returns the position after them."""
        for child in children:
            if self._open_pool and isinstance(child, ModuleNode | UnionNode | PoolNode):
                what = f"nothing but text can stand behind the pool {quote(self._open_pool.name)}"
                self._issues.add(child.place.issue(f"{what}, which has no length"))
            elif isinstance(child, TextNode):
                position = self._append(draft, self._encoder.encode(child.text), position, child.place)
            elif isinstance(child, ParameterNode):
                position = self._parameter(draft, child, position)
            elif isinstance(child, ModuleNode):
                position = self._module(draft, child, position, None)
            elif isinstance(child, UnionNode):
                position = self._union(draft, child, position)
            elif isinstance(child, PoolNode):
                position = self._pool(draft, child, position)
            elif isinstance(child, RoleNode):
                position = self._role(draft, child, position)
            elif isinstance(child, ToolsNode):
                draft.tools = child
                position += 0 if self._open_pool else child.length or 0
        return position

    def _append(
        self, draft: ModuleDraft, token_ids: Sequence[int], position: int, place: Place, kept: bool = True
    ) -> int:
        if self._open_pool:
            if token_ids:
                draft.trailing.append(Trailing(token_ids, place.label("schema"), *self._message))
            return position
        if token_ids:
            draft.runs.append(Run(token_ids, position, kept, place))
        return position + len(token_ids)

    def _module(self, parent: ModuleDraft, node: ModuleNode, position: int, union: UnionDraft | None) -> int:
        path = f"{parent.path}/{node.name}"
        draft = ModuleDraft(self._next_index(), node, path, position, union=union)
        parent.children.append(draft)
        draft.end = self._children(draft, node.children, position)
        return draft.end

    def _union(self, parent: ModuleDraft, node: UnionNode, position: int) -> int:
        index = self._num_unions
        self._num_unions += 1
        previous_role = self._previous_role
        first = len(parent.children)
        draft = UnionDraft(index, node, position, position)
        end = position
        for member in node.members:
            self._previous_role = previous_role
            end = max(end, self._module(parent, member, position, draft))
        union = UnionDraft(index, node, position, end)
        for child in parent.children[first:]:
            child.union = union
        parent.unions.append(union)
        return end

    def _pool(self, parent: ModuleDraft, node: PoolNode, position: int) -> int:
        draft = ModuleDraft(self._next_index(), node, f"{parent.path}/{node.name}", position)
        parent.children.append(draft)
        for member in node.members:
            path = f"{draft.path}/{member.name}"
            inside = ModuleDraft(MEMBER, member, path, position)
            inside.end = self._children(inside, node.with_separators(member.children), position)
            draft.members.append(inside)
        draft.end = position + (node.length or 0)
        if node.length is None:
            if parent.index:
                self._issues.add(node.place.issue("a pool in a module needs a 'length'"))
            self._open_pool = node
        return draft.end

    def _parameter(self, draft: ModuleDraft, node: ParameterNode, position: int) -> int:
        end = position + node.length
        scaffold = self._parameter_text(node, "scaffold", node.scaffold)
        default = self._parameter_text(node, "default", node.default or "")
        draft.parameters.append(ParameterDraft(node, position, default))
        unknown = self._encoder.unknown
        if node.placeholder == "unk" and unknown is None:
            what = 'the model\'s tokenizer has no unknown-token of its own: use placeholder="none"'
            self._issues.add(node.place.at("placeholder").issue(what))
        # A schema that is too long is refused, so what lies beyond is not even made.
        elif unknown is not None and node.placeholder != "none" and end <= self._max_model_len:
            scaffold = [*scaffold, *self._placeholders(node, unknown, node.length - len(scaffold))]
        self._append(draft, scaffold[: node.length], position, node.place, kept=False)
        return end

    def _placeholders(self, node: ParameterNode, unknown: int, number: int) -> list[int]:
        # Members of a union share positions, so the model's length alone is no limit.
        self._num_placeholders += max(number, 0)
        if self._num_placeholders > self._max_placeholders:
            what = f'more than {self._max_placeholders} placeholders: use placeholder="none"'
            self._issues.add(node.place.issue(what))
            self._issues.raise_if_any()
        return [unknown] * number

    def _parameter_text(self, node: ParameterNode, attribute: str, text: str) -> list[int]:
        token_ids = self._encoder.encode(text)
        if len(token_ids) > node.length:
            what = (
                f"the {attribute} text of parameter {quote(node.name)} has {len(token_ids)} tokens;"
                f" {node.length} fit"
            )
            self._issues.add(node.place.at(attribute).issue(what))
        return token_ids

    def _role(self, draft: ModuleDraft, node: RoleNode, position: int) -> int:
        words = RoleWords("", "")
        before: Sequence[int] = ()
        after: Sequence[int] = ()
        timed = (False, False)
        template, is_first = self._encoder.template, draft.index == 0 and position == int(draft.has_bos)
        try:
            words = (
                template.opening(node.role) if is_first else template.words(node.role, self._previous_role)
            )
            before, after = self._encoder.encode(words.before), self._encoder.encode(words.after)
            timed = template.timed(node.role, self._previous_role, is_first)
        except ChatTemplateError as error:
            self._issues.add(node.place.issue(str(error)))
        index = len(draft.messages)
        start = NOWHERE + index if self._open_pool else position
        self._message = index, -1
        content = self._words(draft, before, position, node.place, timed[0])
        self._message = index, 0
        content_end = self._children(draft, node.children, content)
        self._message = index, 1
        end = self._words(draft, after, content_end, node.place, timed[1])
        self._message, self._previous_role = (None, 0), node.role
        places = (start, content, content_end, end)
        if self._open_pool:
            places = (start, max(start, content), NOWHERE + index, NOWHERE + index)
        texts = [
            None if late else text for late, text in zip(timed, (words.before, words.after), strict=True)
        ]
        draft.messages.append(MessageSpan(*places, node.role, *texts))
        return end

    def _words(
        self, draft: ModuleDraft, token_ids: Sequence[int], position: int, place: Place, is_timed: bool
    ) -> int:
        """Lays out a template's words; of those that change within a day, only their room."""
        if not is_timed:
            return self._append(draft, token_ids, position, place)
        return position + (0 if self._open_pool else len(token_ids))


def _has_role(children: Sequence[SchemaChild]) -> bool:
    for child in children:
        if isinstance(child, RoleNode):
            return True
        if isinstance(child, ModuleNode) and _has_role(child.children):
            return True
        if isinstance(child, UnionNode) and any(_has_role(member.children) for member in child.members):
            return True
    return False
