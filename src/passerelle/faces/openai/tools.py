"""Tools, the choice among them, and the format of the answer: checked as far as that can be done without compiling."""

from __future__ import annotations

from passerelle.domain.errors import BadRequest
from passerelle.faces.openai import bodies
from passerelle.faces.openai.json_schema import check_schema


def check_tools(chat: bodies.ChatBody) -> None:
    """Raises BadRequest for tools that may not be forwarded, or a choice that names none of them."""
    names = set()
    for index, tool in enumerate(chat.tools or ()):
        if tool.function.name in names:
            raise BadRequest("Two tools have the same name.", param=f"tools[{index}].function.name")
        names.add(tool.function.name)
        check_schema(tool.function.parameters, f"tools[{index}].function.parameters")
    choice = chat.tool_choice
    if isinstance(choice, bodies.NamedTool) and choice.function.name not in names:
        raise BadRequest("Field `tool_choice` names a function that is not in `tools`.", param="tool_choice")
    if choice == "required" and not names:
        raise BadRequest("Field `tool_choice` is `required`, and there are no `tools`.", param="tool_choice")


def check_response_format(wanted: bodies.ResponseFormat) -> None:
    """Raises BadRequest for a JSON schema that may not be forwarded."""
    if isinstance(wanted, bodies.JsonSchemaFormat):
        check_schema(wanted.json_schema.schema, "response_format.json_schema.schema")
