"""The catalogue of causes: what programs get wrong, by name, in words that follow "the numbers are those that come out
when ". `mistaken_model` and `mistaken_optimizers` make them; those of a cell alone: `mistakes`."""

from itertools import combinations

from runner.diagnosis.mistaken_layers import cell_name
from runner.diagnosis.mistakes import ORDERS, backward_mistakes, forward_mistakes
from shared.config import ModelConfig, OptimizerConfig
from shared.optimizers import rule

Words = dict[str, str]
GATES = {
    "i": "input gate",
    "f": "forget gate",
    "g": "candidate",
    "o": "output gate",
    "r": "reset gate",
    "z": "update gate",
    "n": "candidate",
}
"""Letters of `mistakes.ORDERS`."""

STATES = {
    "state lost between calls": "a call does not hand on the state (the next one starts from the old state)",
    "state one step behind": "the state that is handed on is stale: the one before the last step",
    "first layer's state for all layers": "every layer starts from the first layer's state",
}
LAYERS = {
    "activation left out": "the activation behind the embedding is left out",
    "residual left out": "the residual connections are left out",
    "bias above missing": "the layers above the first have no bias",
    "decoder's bias left out": "the decoder's bias is left out",
}
EVALUATION = {
    "state not carried in evaluation": "evaluation does not carry the state from batch to batch",
    "hits on padding": "hits are counted on padding, too",
}
ROWS = {
    "reset ignored": "rows that start anew keep the old state",
    "state of ended rows kept": "rows that end in padding keep their state",
    "mask ignored": "padding counts like any other step: the mask is ignored",
    "mask ignored in the loss": "padding counts in the loss like any other step",
    "the window's last step predicts": "the last step of the window predicts, padding or not",
    "empty rows counted": "a row that is all padding counts, too",
}
MEANS = {
    "mean over padding": "the masked sum is divided by all steps, not by the unmasked ones",
    "mean over rows": "the loss is divided by the number of rows, not of predictions",
    "sum for mean": "the loss is a sum, not a mean",
}
DROPOUT = {
    "dropout left out": "nothing is dropped",
    "dropout behind the last layer too": "dropout acts behind the last layer, too",
    "dropout behind the last layer left out": "dropout does not act behind the last layer",
    "one mask for all layers": "every layer has the first layer's dropout mask",
    "masks laid out by time": "the dropout masks are laid out [T, B, H], not [B, T, H]",
    "kept not scaled up": "what dropout keeps is not divided by 1 - rate",
    "kept and dropped exchanged": "dropout keeps what it should drop",
    "masks of the next step": "the dropout masks are those of the next step",
    "masks of the step before": "the dropout masks are those of the step before",
}
GRADIENTS = {
    "mask ignored on the way back": "the gradient of the loss ignores the mask",
    "gradient of a reset row kept": "the initial state of a row that starts anew gets a gradient",
    "first layer's state on the way back": "on the way back, every layer's initial state is the first layer's",
    "plain residual left out on the way back": "a residual connection hands no gradient to its input",
    "projected residual left out on the way back": "a projected residual connection hands no gradient to its input",
    "dropout left out on the way back": "the gradient does not pass through the dropout mask",
    "activation's slope left out": "the slope of the activation behind the embedding is left out",
    "repeated tokens not added up": "the gradients of a token that occurs several times are not added up",
    "tied gradient of the decoder alone": "tied weights get the decoder's gradient without the embedding's",
    "tied gradient of the embedding alone": "tied weights get the embedding's gradient without the decoder's",
}
RUN = {
    "state not carried in training": "training does not carry the state from batch to batch",
    "one learning rate for all steps": "all steps of a call take its first learning rate",
    "updates not counted": "the number of updates is not counted",
    "count of updates lost between calls": "the number of updates is lost when the optimizer is handed over",
    "slots lost between calls": "the optimizer's slots are lost when it is handed over",
    "gradient's memory scrambled": "a gradient that lies transposed in memory is read as if it did not",
}
CLIPPING = {
    "clipping left out": "the global norm is not clipped",
    "clipping per tensor": "each tensor is clipped by its own norm, not by the global one",
    "clipping scales up too": "gradients with a small norm are scaled up to the limit",
}
CLIPPINGS = {
    "norm before the other clippings": "the global norm is taken before the other clippings, not after them",
    "value clipping left out": "clipping by value is left out",
    "value clipping from above only": "clipping by value acts on one side only",
    "layer clipping left out": "clipping by layer is left out",
    "layer's limit for all layers": "a layer's limit is put on all layers",
}
SQUARES = {
    "epsilon outside": "epsilon is added outside the root",
    "epsilon inside": "epsilon is added inside the root",
    "epsilon 1e-7": "epsilon is 1e-7, Keras' default",
    "epsilon 1e-8": "epsilon is 1e-8, the usual default",
    "epsilon left out": "epsilon is left out",
    "epsilon's root": "epsilon is replaced by its root (moved in or out of the root without care)",
    "root left out": "the step is divided by the squares, not by their root",
    "squares start from zero": "the squares start from zero, not from the initial accumulator",
    "mean not subtracted": "the mean gradient is not subtracted from the squares",
}
MOMENTS = {
    "epsilon uncorrected": "epsilon is added before the bias correction (Keras' formula)",
    "betas swapped": "the decays of the two moments are swapped",
    "mean not corrected": "the mean has no bias correction",
    "squares not corrected": "the squares have no bias correction",
    "nothing corrected": "there is no bias correction",
    "bias correction one step late": "the bias correction counts one step too many",
    "bias correction one step early": "the bias correction counts one step too few",
    "decay without the learning rate": "weight decay is not multiplied by the learning rate",
    "decay left out": "weight decay is left out",
    "decay enters the gradient": "weight decay is added to the gradient (L2), not taken off the weights",
}
VELOCITY = {
    "rate on the other side of the velocity": "the learning rate stands on the other side of the velocity",
    "learning rate twice": "the learning rate is multiplied in twice",
    "velocity damped": "the velocity takes 1 - momentum of the gradient",
    "nesterov's look ahead": "Nesterov's look ahead is exchanged with plain momentum",
    "nesterov without momentum": "Nesterov's look ahead takes the velocity without momentum",
    "nesterov without velocity": "Nesterov's update leaves the velocity out",
}
SAMPLING = {
    "temperature multiplies": "the logits are multiplied by the temperature, not divided",
    "temperature ignored": "the temperature is ignored",
    "always the likeliest": "the likeliest token is always taken",
    "top-k ignored": "top-k is ignored",
    "top-k keeps one more": "top-k keeps one token too many",
    "top-k keeps one less": "top-k keeps one token too few",
    "top-p ignored": "top-p is ignored",
    "top-p on the sum after": "top-p drops the token that reaches the sum, which should stay",
    "drawn from the likeliest down": "the sums run from the likeliest token down, not in the tokens' order",
    "one token too many read": "one token of padding is read after a short prompt",
    "padding of the prompt read": "the padding after a short prompt is read",
    "forced tokens ignored": "forced tokens are ignored",
    "forbidden tokens drawn": "forbidden tokens are drawn",
    "ended rows go on": "rows that have ended go on",
}


def causes(stage: str, model: ModelConfig, optimizer: OptimizerConfig) -> Words:
    """Name -> words of what can be wrong at a stage of the computation."""
    cell, masks = cell_name(model), dropout(model)
    always = {"dropout always": "dropout acts where none was asked for"} if masks else {}
    same = {"the same masks at every step": "the dropout masks are the same at every step"} if masks else {}
    usual = f"stacked {ORDERS.get(cell)}"  # a mistake only beside another order
    back = {name: words for name, words in backward_mistakes(cell).items() if name != usual}
    catalogue = {
        "forward": {**forward_mistakes(cell), **one_sided(cell), **STATES, **LAYERS},
        "evaluation": {**EVALUATION, **ROWS},
        "loss": {**ROWS, **MEANS, **masks, **always},
        "gradients": {**back, **mixed_up(cell), **GRADIENTS, **ROWS, **MEANS, **masks},
        "training": {**RUN, **masks, **same, **training(optimizer)},
        "tokens": SAMPLING,
    }
    return catalogue.get(stage, {})


def dropout(model: ModelConfig) -> Words:
    """What can be wrong with it; nothing without any."""
    last = "dropout behind the last layer too" if model.output_dropout else "dropout behind the last layer left out"
    return {name: words for name, words in DROPOUT.items() if name != last} if any(model.dropout_rates) else {}


def training(optimizer: OptimizerConfig) -> Words:
    """What can be wrong in clipping and update."""
    how = rule(optimizer)
    found = CLIPPING if optimizer.clip_norm else {}
    found = found | (CLIPPINGS if optimizer.clip_value or optimizer.clip_layers else {})
    found |= SQUARES if how.square else {}
    found |= MOMENTS if how.corrected else {}
    return found | (VELOCITY if how.buffer else {})


def one_sided(cell: str) -> Words:
    """Two gates swapped in one of the two products."""
    usual, found = ORDERS.get(cell, ""), {}
    for one, other in combinations(usual, 2):
        order = "".join({one: other, other: one}.get(gate, gate) for gate in usual)
        for side, weights in {"inputs": "weight_ih and bias", "recurrent": "weight_hh"}.items():
            found[f"{side} in order {order}"] = f"{GATES[one]} and {GATES[other]} are swapped in {weights} alone"
    return found


def mixed_up(cell: str) -> Words:
    """The gradient of one weight, taken for that of another."""
    if cell == "wrnn":
        return {"weight_skip's gradient sees the new state": "weight_skip's gradient takes the first layer's new state"}
    gates = ORDERS[cell] if cell == "gru" else ""
    return {f"bias_hn's gradient of {gate}": f"bias_hn gets the gradient of the {GATES[gate]}'s sum" for gate in gates}
