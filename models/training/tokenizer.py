"""Trains the tokenizer: byte-level BPE with 4,096 entries over generated stories; writes tokenizer.json and its config."""
import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from stories import stories

END, STORY, TALE, USER, ASSISTANT = "<|end|>", "<|story|>", "<|tale|>", "<|user|>", "<|assistant|>"
SPECIAL = [END, STORY, TALE, USER, ASSISTANT]
VOCAB = 4096
# Frequent English words that the stories may lack, so that a reader's own prompt takes few tokens.
COMMON = """people because through another thought should between during without however number water world different
system program language computer answer question country government company business problem number example
important interesting beautiful possible together something nothing everything everyone someone always never
before after again around always around children family mother father brother sister friend school teacher student
money music picture letter paper story chapter write writing reading speak speaking listen learning understand
remember believe become began begin bring brought build change close consider continue could create decide
describe develop discover enough explain follow general group happen history however idea include increase
information interest January February March April August September October November December kitchen knowledge
machine matter member minute moment month morning mountain nature national natural north office order other
parent party pattern perhaps person place plant point power present president process produce product provide
public reason receive remain report research result right science second sentence several simple since social
society special spring start state still strange street strong study subject suddenly summer surface table their
there these thing think those thousand today tomorrow toward travel under usually value various village voice
watch week weather whether which while white whole window winter woman wonder would yellow yesterday young
please thanks sorry hello goodbye welcome castle princess knight wizard witch pirate robot spaceship planet
alien dinosaur unicorn mermaid fairy ghost vampire zombie superhero villain monster adventure magic treasure
birthday Christmas holiday vacation airplane bicycle hospital restaurant television telephone internet video
football baseball basketball soccer tennis swimming running jumping dancing singing painting cooking eating""".split()

# The last user message is the opening of the story; without one the usual opening is used.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% set ns = namespace(opening='Once upon a time') %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% set ns.opening = message['content'] %}{% endif %}{% endfor %}{{ ns.opening | trim }}"
)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--out", default="../tiny-step3")
    ap.add_argument("--stories", type=int, default=30000)
    ap.add_argument("--seed", type=int, default=77)
    args = ap.parse_args()
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), min_frequency=2
    )
    corpus = [text for text, _ in stories(args.seed, args.stories)]
    corpus += 3 * [f"{word} {word.lower()} {word.capitalize()}" for word in COMMON]
    tok.train_from_iterator(corpus, trainer)
    assert tok.get_vocab_size() == VOCAB, tok.get_vocab_size()
    tok.post_processor = processors.TemplateProcessing(
        single=f"{STORY} $A", special_tokens=[(STORY, tok.token_to_id(STORY))]
    )
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    tok.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": STORY,
        "eos_token": END,
        "add_bos_token": True,
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
