"""Writes tests/data/chats.json: what the packages transformers and jinja2 make of chat templates.

    pip install transformers==4.57.6 tokenizers==0.22.2 jinja2
    python3 tests/data/make_chats.py

forms      per built-in form and tokenizer: the template, and 1,000 random conversations as hashes of the ids that
           apply_chat_template gives: open (up to the answer), and finished with the mask of the assistant's tokens.
           chat_test.cpp makes the same conversations from the same random numbers; the first ones are written out.
templates  templates of other kinds, each with conversations and the texts that they are rendered to, or an error
"""

import datetime
import json
import os

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

here = os.path.dirname(os.path.abspath(__file__))
kinds = json.load(open(os.path.join(here, "tokenizers.json"), encoding="utf-8"))

fragments = [
    "Who",
    "made",
    "the",
    "lamp",
    "?",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "é",
    "e\u0301",
    "你好",
    "🙂",
    "👩‍👩‍👧",
    "\u00a0",
    "\u2003",
    "\u200b",
    "\ufeff",
    "{{",
    "}}",
    "{%",
    "'",
    '"',
    "\\",
    "\\n",
    "<",
    ">",
    "|",
    "[",
    "]",
    "INST",
    "<<",
    "SYS",
    "im_start",
    "user",
    "assistant",
    ":",
    "USER",
    "1234567",
    "½",
    "٣",
    "\x01",
    "\x7f",
    "\u2028",
    "Ünïcode",
    "don't",
    "I'LL",
    "▁",
    "#",
]


class Random:
    """Numbers that chat_test.cpp makes as well."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % n


def text(random, plain):
    words = [fragments[random.below(len(fragments))] for _ in range(random.below(12))]
    # Text that begins with a letter: no token then joins it with what stands before.
    return "".join((["Well"] if plain else []) + words)


def conversation(random):
    messages = []
    if random.below(3) == 0:
        messages.append({"role": "system", "content": text(random, False)})
    for turn in range(1 + random.below(3)):
        messages.append({"role": "user", "content": text(random, False)})
        messages.append({"role": "assistant", "content": text(random, True)})
    return messages


def hashed(numbers):
    value = 14695981039346656037
    for number in numbers:
        value = ((value ^ number) * 1099511628211) % 2**64
    return value >> 32


alternate = "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}"
split_system = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
)
mistral = """{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}

{{- bos_token }}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('turns') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.first and system is defined %}
            {{- " [INST] " + system + "\\n\\n" + message["content"] + " [/INST]" }}
        {%- else %}
            {{- " [INST] " + message["content"] + " [/INST]" }}
        {%- endif %}
    {%- else %}
        {%- generation %}
            {{- " " + message["content"] + eos_token}}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
"""
zephyr = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}

{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
polite = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and "
    "polite answers to the user's questions."
)
forms = {
    "llama2": (
        split_system
        + "{% for message in rest %}"
        + alternate
        + "{% if loop.index0 == 0 and system != false %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + "
        "message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{% generation %}{{ ' '  + content.strip() + ' ' + eos_token }}"
        "{% endgeneration %}{% endif %}{% endfor %}"
    ),
    "llama3": (
        "{% for message in messages %}{% set head = '<|start_header_id|>' + message['role'] + "
        "'<|end_header_id|>\n\n' %}"
        "{% if loop.index0 == 0 %}{% set head = bos_token + head %}{% endif %}{{ head }}"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}"
        "{% endgeneration %}{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
        "{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "mistral": mistral,
    "zephyr": zephyr,
    "vicuna": (
        "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
        '{% else %}{% set rest = messages %}{% set system = "'
        + polite
        + "\" %}{% endif %}{{ bos_token + system + ' ' }}"
        "{% for message in rest %}"
        + alternate
        + "{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
        "{% else %}{{ 'ASSISTANT:' }}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
        "{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
}
tags = {
    "llama2": ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"],
    "mistral": ["[INST]", "[/INST]"],
    "vicuna": ["USER:", "ASSISTANT:"],
    "llama3": [],
    "chatml": [],
    "zephyr": [],
}  # what the forms refuse, where random text may spell it
marks = {"llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "chatml": ["<|im_start|>", "<|im_end|>"]}
pairs = [
    ("llama2", "llama2_prepend"),
    ("llama2", "metaspace_first"),
    ("llama3", "llama3"),
    ("chatml", "gpt2"),
    ("chatml", "digits"),
    ("mistral", "llama2_prepend"),
    ("mistral", "metaspace_first"),
    ("zephyr", "llama2_prepend"),
    ("vicuna", "llama2_prepend"),
    ("vicuna", "metaspace_always"),
]


def tokenizer_of(form, kind):
    file = json.loads(json.dumps(kinds[kind]["file"]))
    size = max([*file["model"]["vocab"].values(), *[token["id"] for token in file["added_tokens"]]]) + 1
    for mark in marks.get(form, []):
        file["added_tokens"].append(
            {
                "id": size,
                "content": mark,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        )
        size += 1
    bos, eos = ("<|begin|>", "<|end|>") if kind in ("llama3", "gpt2", "digits") else ("<s>", "</s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(file)), bos_token=bos, eos_token=eos, chat_template=forms[form]
    )


def form_cases():
    for form, kind in pairs:
        tokenizer = tokenizer_of(form, kind)
        random = Random(1)
        shown, opened, finished = [], [], []
        for i in range(1000):
            messages = conversation(random)
            while any(tag in message["content"] for tag in tags[form] for message in messages):
                messages = conversation(random)
            ids = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)
            whole = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
            flags = [id * 2 + flag for id, flag in zip(whole["input_ids"], whole["assistant_masks"])]
            opened.append(f"{hashed(ids):08x}")
            finished.append(f"{hashed(flags):08x}")
            if i < 3:
                shown.append(
                    {
                        "messages": messages,
                        "open": ids,
                        "finished": whole["input_ids"],
                        "answer": whole["assistant_masks"],
                    }
                )
        yield {
            "form": form,
            "tokenizer": kind,
            "marks": marks.get(form, []),
            "bos": tokenizer.bos_token,
            "eos": tokenizer.eos_token,
            "template": forms[form],
            "shown": shown,
            "open": opened,
            "finished": finished,
        }


llama31 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The system message, or a header without one. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\\n\\n"}}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim +\
 '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
qwen = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and\
 not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role ==\
 "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{{- ns.last_query_index }}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# What transformers adds to Jinja, at the time `moment`; all of Python's directives that do not depend on the machine.
dated = """{% if strftime_now is defined %}{% set date = strftime_now("%d %b %Y") %}{% endif %}\
{{ bos_token }}Today: {{ date }}
{{ strftime_now("%A %a %B %j %U %W %V %G %u %w %y %C %m %e %H %I %M %S %p %f|%z%Z|%%|%D %T %F %c %x %X %-d é%n%t.%") }}
{% for m in messages %}{{ m.role ~ ": " ~ m.content ~ eos_token }}{% endfor %}
{{ raise_exception is defined }}{{ range is defined }}{{ namespace is defined }}{{ strftime_later is defined }}"""
moment = datetime.datetime(2024, 7, 4, 5, 6, 7, 89)


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return moment


others = {
    "mistral_v01": (
        "{{ bos_token }}{% for message in messages %}" + alternate + "{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ message['content'] + eos_token + ' ' }}{% else %}{{ raise_exception('Only user and assistant!') }}"
        "{% endif %}{% endfor %}"
    ),
    "llama31": llama31,
    "qwen": qwen,
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}"
        "{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
        "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + "
        "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
    ),
    "nemo": (
        "{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}"
        "{%- for message in messages | rejectattr('role', 'equalto', 'tool') | selectattr('tool_calls', 'undefined') %}"
        "{%- if message == users[-1] %}LAST{% endif %}{{ message.role|upper }}={{ message.content|length }};"
        "{%- endfor %}"
    ),
    "think": (
        "{% for m in messages %}{% set c = m.content %}{% if 'e' in c %}"
        "{% set c = c.split('e')[-1].lstrip('\\n') %}{% endif %}"
        "{{ loop.index ~ '/' ~ loop.length ~ ':' ~ c ~ ('.' if loop.last else ',') }}{% if loop.index == 3 %}"
        "{% break %}"
        "{% endif %}{% endfor %}"
    ),
    "macro": (
        "{% macro turn(m, tail='!') %}<{{ m.role | title }}|{{ m['content'] | replace('e', '3') }}{{ tail }}>"
        "{% endmacro %}"
        "{% for m in messages if m.role != 'system' %}{{ turn(m) }}{{ turn(m, tail=loop.revindex|string) }}"
        "{% else %}none"
        "{% endfor %}"
    ),
    "spaces": "  {% if true %}\n a {{ 1 }} \n  {%+ if true %} b {%- endif +%}\n{# note #}\n  {#- note -#}  c\n"
    "{% endif %}\n\n{{- 'd' -}}\n e \n\n",
    "scopes": (
        "{% set x = 1 %}{% for m in messages %}{% if m.role == 'user' %}{% set x = x + 1 %}"
        "{% set y = loop.index0 %}{% endif %}"
        "{{ x }}{{ y is defined }}{{ y }};{% endfor %}{{ x }}{% set z %}[{{ x }}]{% endset %}{{ z ~ z|length }}"
    ),
    "numbers": (
        "{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 2 * 3 - 1 }} {{ 1 ~ 2 ~ 'c' }} {{ 10 > 9 >= 9 != 8 }} "
        "{{ not 1 == 2 }} {{ [1, 2] + [3] == "
        "[1,2,3] }} {{ (1, 2)[1] }} {{ 'abc'[-1] }}{{ 'abcdef'[1:4] }}{{ 'abcdef'[::-2] }} {{ 'a' in 'cat' }} "
        "{{ 4 not in [1, 2] }} {{ true and "
        "none }} {{ 0 or 'x' }} {{ 'ab' * 2 }} {{ range(3) | join('-') }} {{ 5 is odd }} {{ 6 is divisibleby 3 }} "
        "{{ 'a' 'b' }} {{ 1 if false }}"
    ),
    "maps": (
        "{% set d = {'a': 1, 'b': {'c': 'é\"\\n'}} %}{{ d | tojson }} {{ d.b.c }} {% for k, v in d.items() %}"
        "{{ k }}{{ loop.first }}{% endfor %} "
        "{{ d.get('z', 'none') }} {{ 'a' in d }} {{ d.z is defined }} {{ d['z'] | default('q') }} "
        "{{ d | length }} {{ [3, none, true, 'x'] | tojson }}"
    ),
    "tests": (
        "{{ messages is iterable }}{{ messages is mapping }}{{ messages[0] is mapping }}{{ 'a' is string }}"
        "{{ none is none }}{{ 1 is number }}"
        "{{ true is true }}{{ nothing is defined }}{{ nothing }}{{ messages | map(attribute='role') | join(',') }}"
        "{{ '  x ' | trim }}|"
        "{{ 'xxaxx'.strip('x') }}{{ 'aXb'.lower() }}{{ 'a,b,c'.split(',', 1)[1] }}"
        "{{ messages | first == messages[0] }}{{ (messages|last).role }}"
    ),
    "raises": "{{ raise_exception('no ' ~ messages|length) }}",
    "undefined": "{{ nothing.at_all }}",
    "sum": "{{ 'a' + 1 }}",
    "dated": dated,
}
dialogues = [
    [{"role": "user", "content": " Hello there \n"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?\n"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "the\nend é"},
        {"role": "user", "content": "b"},
    ],
    [
        {"role": "system", "content": ""},
        {"role": "user", "content": "sée"},
        {"role": "assistant", "content": "\n\nx"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "y "},
    ],
]


def template_cases():
    chat_template_utils.datetime = Clock
    for name, template in {**forms, **others}.items():
        texts = []
        for messages in dialogues:
            for prompt in (True, False):
                try:
                    rendered, _ = render_jinja_template(
                        [messages],
                        chat_template=template,
                        add_generation_prompt=prompt,
                        bos_token="<s>",
                        eos_token="</s>",
                    )
                    texts.append(rendered[0])
                except Exception:
                    texts.append(None)
        yield {"name": name, "template": template, "texts": texts}


if __name__ == "__main__":
    with open(os.path.join(here, "chats.json"), "w", encoding="utf-8") as file:
        json.dump(
            {
                "fragments": fragments,
                "forms": list(form_cases()),
                "dialogues": dialogues,
                "templates": list(template_cases()),
            },
            file,
            ensure_ascii=True,
            separators=(",", ":"),
        )
        file.write("\n")
