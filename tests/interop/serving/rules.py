"""What described.py adds to schemathesis: the rules of the server that a JSON Schema does not say.

schemathesis loads this as its hooks. A body that its schema allows may be refused by one of these rules and by nothing
else: the check `positive_data_acceptance` runs unchanged, and a failure of it is forgiven where the refusal is the
server's sentence for such a rule, with a status of refusals.
"""

import re

import schemathesis
from schemathesis.specs.openapi.checks import RejectedPositiveData, positive_data_acceptance

rules = [re.compile(text) for text in (
    # a prompt and its reply have room together
    r"^This model's maximum context length is \d+ tokens, \d+ of them for the prompt\. However, you requested ",
    r"^`inputs` tokens \+ `max_new_tokens` must be <= \d+\. Given: ",
    r"^`inputs` must have less than \d+ tokens\. Given: \d+$",
    r"^`(inputs|prompt|messages)` has \d+ bytes, more than \d+ tokens can have$",
    # fields that go together, or do not
    r"^`n` times the number of prompts is \d+; at most 16$",
    r"^`stream_options` is for streams: set `stream` to true, or leave it out$",
    r"^`top_logprobs` needs `logprobs` to be true$",
    r"^`against` needs `logprobs`, of which its values are part$",
    r"^`against` is not for `echo`$",
    r"^`against` is .*, which is neither .* nor an adapter of it$",
    r"^`max_tokens` must be a whole number from 1 to \d+$",  # 0 is for `echo`
    r"^`seed` must not be set when `best_of` > 1$",
    r"^you must use sampling when `best_of` is > 1$",
    r"^`best_of` != 1 is not supported when streaming tokens$",
    r"^`decoder_input_details` == true is not supported when streaming tokens$",
    # turns of a conversation, and marks in them
    r"^message \d+ is of role '\w+' where '\w+' is due; ",
    r"^a conversation needs a message of the user$",
    r"^the conversation ends with the assistant: nothing is left to answer$",
    r"^message \d+ holds the special tag ",
    # folders of the machine
    r" is no adapter: ",
)]


def sentence(response):
    """What the server says in the field for it of either form."""
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return ""
    return error["message"] if isinstance(error, dict) else error


@schemathesis.check
def accepted_or_ruled_out(ctx, response, case):
    try:
        return positive_data_acceptance(ctx, response, case)
    except RejectedPositiveData:
        if response.status_code in (400, 422) and any(rule.search(sentence(response)) for rule in rules):
            return None
        raise
