"""Right and wrong answers to the exercises of lesson 11."""


def softmax(scores, dim=-1):
    powers = (scores - scores.amax(dim, keepdim=True)).exp()
    return powers / powers.sum(dim, keepdim=True)


RIGHT = {
    "softmax": softmax,
    "context": lambda x, t: softmax(x @ x[t]) @ x,
}


WRONG = {
    "softmax": [
        lambda scores: scores.exp() / scores.exp().sum(-1, keepdim=True),  # overflows
        lambda scores: softmax(scores, dim=0),
        lambda scores: (scores - scores.max()).exp() / (scores - scores.max()).exp().sum(),  # over everything
        lambda s: (p := (s - s.mean(-1, keepdim=True)).exp()) / p.sum(-1, keepdim=True),  # overflows later
        lambda scores: scores / scores.sum(-1, keepdim=True),  # no exp
    ],
    "context": [
        lambda x, t: softmax(x @ x[t] / x.size(1) ** 0.5) @ x,  # scaled
        lambda x, t: (x @ x[t]) @ x,  # no softmax
        lambda x, t: softmax(x @ x.T, dim=0)[t] @ x,  # along the wrong dimension
        lambda x, t: x.mean(dim=0),
    ],
}
