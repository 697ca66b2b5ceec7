"""Turn a row of the source into a conversation, or say why it cannot be used."""

import re

from qlora.recipe.schema import Data
from qlora.rows.chat import Messages

ROLES = {"system", "user", "assistant"}


class Rejected(ValueError):
    """A row that cannot be used; the message is the reason that rejected.jsonl gives."""


def conversation(row: dict, data: Data) -> Messages:
    """The messages of one row, the assistant's answer last.

    Raises:
        Rejected: with the reason, if a value is missing, empty or of the wrong type.
    """
    if data.task == "text-to-sql":
        texts = {name: _text(row, getattr(data.columns, name)) for name in ("question", "context", "answer")}
        prompt = data.user_prompt.replace("{context}", texts["context"]).replace("{question}", texts["question"])
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": texts["answer"]}]
    elif data.columns.text:
        messages = split_text(_text(row, data.columns.text))
    else:
        messages = _messages(row.get(data.columns.messages))
    if data.system_prompt and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": data.system_prompt}, *messages]
    return messages


def split_text(text: str) -> Messages:
    """Split a conversation that was flattened into one text.

    Knows guanaco's `### Human:` / `### Assistant:` and Llama-2's `<s>[INST] ... [/INST] ... </s>`, whose system prompt
    is in `<<SYS>>`.

    Raises:
        Rejected: if neither mark is there, or the turns do not alternate.
    """
    if "[INST]" in text:
        messages = []
        for turn in re.split(r"(?:<s>)?\s*\[INST\]", text.replace("</s>", ""))[1:]:
            question, mark, answer = turn.partition("[/INST]")
            if not mark:
                raise Rejected("an [INST] without [/INST]")
            if system := re.match(r"\s*<<SYS>>(.*?)<</SYS>>", question, re.DOTALL):
                messages.append({"role": "system", "content": system[1].strip()})
                question = question[system.end() :]
            messages.append({"role": "user", "content": question.strip()})
            if answer.strip():  # some conversations end with an unanswered question
                messages.append({"role": "assistant", "content": answer.strip()})
    elif "### Human:" in text:
        parts = re.split(r"### (Human|Assistant):", text)
        roles = {"Human": "user", "Assistant": "assistant"}
        messages = [
            {"role": roles[who], "content": content.strip()}
            for who, content in zip(parts[1::2], parts[2::2], strict=True)
        ]
    else:
        raise Rejected("the text has neither [INST] nor ### Human:")
    return _messages(messages)


def valid_text(text: str) -> str:
    """Return `text`.

    Raises:
        Rejected: if it holds an unpaired surrogate, which JSON's escapes can express and UTF-8 cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Rejected("a character is cut in half (an unpaired surrogate)") from None
    return text


def _text(row: dict, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise Rejected(f"{column!r} is {'missing' if value is None else 'not text'}")
    if not value.strip():
        raise Rejected(f"{column!r} is empty")
    return valid_text(value.strip())


def _messages(value: object) -> Messages:
    if not isinstance(value, list) or not value:
        raise Rejected("'messages' is not a list of messages")
    messages = []
    for message in value:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            raise Rejected(f"a message needs role ({', '.join(sorted(ROLES))}) and content, not {str(message)[:80]}")
        if not content.strip():
            raise Rejected(f"an empty {role} message")
        messages.append({"role": role, "content": valid_text(content.strip())})
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()  # an unanswered question at the end teaches nothing
    turns = [message["role"] for message in messages if message["role"] != "system"]
    if not turns:
        raise Rejected("no assistant message")
    if turns != ["user", "assistant"] * (len(turns) // 2):
        raise Rejected("the turns of user and assistant do not alternate")
    return messages
