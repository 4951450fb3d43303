"""The Python package langchain-openai."""

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI

from common import Checks, prompt, question, tokens


def run(world):
    checks = Checks("langchain-openai", "langchain-openai")
    common = {"base_url": world.open.url + "/v1", "api_key": "none", "temperature": 0, "max_retries": 0}
    for name in ("tiny-chat", "tuned"):
        chat = ChatOpenAI(model=name, stream_usage=True, **common)
        checks.about("invoke, stream and batch of ChatOpenAI") if name == "tuned" else None
        said = chat.invoke(question)
        checks.equal("answer", said.content, world.answer[name])
        checks.equal("tokens of the prompt", said.usage_metadata["input_tokens"], len(world.chat_ids))
        parts = list(chat.stream([HumanMessage(question)]))
        checks.equal("answer of a stream", "".join(part.content for part in parts), world.answer[name])
        whole = parts[0]
        for part in parts[1:]:
            whole += part
        checks.equal("usage of a stream", whole.usage_metadata["total_tokens"], said.usage_metadata["total_tokens"])
        checks.equal("its reason", whole.response_metadata["finish_reason"], "stop")
        answers = chat.batch([question] * 6)
        checks.equal("answers of a batch", [answer.content for answer in answers], [world.answer[name]] * 6)
        weighed = chat.bind(logprobs=True).invoke(question)
        checks.equal("tokens with log-probabilities", "".join(
            token["token"] for token in weighed.response_metadata["logprobs"]["content"]).lstrip(), world.answer[name])
    checks.about("chains and turns")
    chain = ChatPromptTemplate.from_messages([("user", "Who makes the {thing}?")]) | chat | StrOutputParser()
    checks.equal("answer of a chain", chain.invoke({"thing": "Vorzana"}), world.answer["tuned"])
    turns = [SystemMessage("Be short."), HumanMessage("Hello!"), AIMessage("Hello."), HumanMessage(question)]
    text = "[INST] <<SYS>>\nBe short.\n<</SYS>>\n\nHello! [/INST]"
    ids = [world.pieces.bos_id(), *world.pieces.encode(text), *world.pieces.encode("Hello. "), world.pieces.eos_id(),
           world.pieces.bos_id(), *world.pieces.encode(f"[INST] {question} [/INST]")]
    checks.equal("tokens of turns, as sentencepiece counts", chat.invoke(turns).usage_metadata["input_tokens"],
                 len(ids))
    checks.about("OpenAI")
    text = OpenAI(model="tuned", max_tokens=tokens, **common)
    checks.equal("text", text.invoke(prompt), world.text["tuned"])
    checks.equal("text of a stream", "".join(text.stream(prompt)), world.text["tuned"])
    checks.equal("texts of a batch", text.batch([prompt] * 4), [world.text["tuned"]] * 4)
    return [checks]
