"""Time `robust_correct` against torchattacks, foolbox (if installed) and a plain loop, on the same images in one run.

    python bench/attacks.py                  # VGG11 with BN, PGD l2 in 10 steps, 1,000 images
    python bench/attacks.py --full           # VGG and ResNet, BN and none, l2 and linf, ce and cw, 10 and 50 steps
    python bench/attacks.py --full --go-on   # the cases that a run ended early has left

Two ratios, kept apart: *same work*, every step for every image, both judged after the last step; and *early exit*,
where an image that is misclassified ends its own attack. Robust accuracy stands beside each: a faster attack
that finds fewer adversarial examples is not faster at the same answer.
"""
import importlib.util
import json
import sys
from copy import deepcopy
from dataclasses import replace
from itertools import product
from math import prod
from statistics import median

import torch
import torch.nn.functional as F

from common import EPS, ROOT, held_out, markdown, options, parser, processor, publish, ratios, spread, trained, turns
from nrf_repro.attacks import Attack, frozen, input_gradient, margin, optimised_inference, robust_correct
from nrf_repro.attacks.inference import ChannelsLast, fold_norms, lean_relus

FULL = dict(archs=['vgg11', 'resnet18'], norms=['bn', 'none'], balls=['l2', 'linf'], losses=['ce', 'cw'],
            steps=[10, 50], images=1000, repeats=2)
OUT = ROOT / 'bench/out/attacks.json'
STEP = dict(l2=.4, linf=.255)   # of eps: .1 and .001 on CIFAR-10, as in the authors' code


def plain_loop(model, x, y, a):
    "PGD as one would write it down."
    adv = x
    for _ in range(a.steps):
        adv = adv.detach().requires_grad_()
        z = model(adv)
        loss = F.cross_entropy(z, y) if a.loss == 'ce' else margin(z, y).mean()
        g, = torch.autograd.grad(loss, adv)
        if a.ball == 'linf': delta = (adv + a.step_size * g.sign() - x).clamp(-a.eps, a.eps)
        else:
            delta = adv + a.step_size * g / g.flatten(1).norm(dim=1).clamp_min(1e-10).view(-1, 1, 1, 1) - x
            delta = delta * (a.eps / delta.flatten(1).norm(dim=1).clamp_min(a.eps)).view(-1, 1, 1, 1)
        adv = (x + delta).clamp(0, 1).detach()
    return adv


def torchattacks_pgd(model, x, y, a):
    import torchattacks
    kind = dict(l2=torchattacks.PGDL2, linf=torchattacks.PGD)[a.ball]
    return kind(model, eps=a.eps, alpha=a.step_size, steps=a.steps, random_start=False)(x, y)


def foolbox_pgd(model, x, y, a):
    import foolbox
    kind = dict(l2=foolbox.attacks.L2PGD, linf=foolbox.attacks.LinfPGD)[a.ball]
    attack = kind(abs_stepsize=a.step_size, steps=a.steps, random_start=False)
    return attack(foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device), x, y, epsilons=a.eps)[1]


def judged(make):
    "A rival's images in batches, judged after the last step."
    def correct(model, x, y, a, bs):
        parts = []
        for xb, yb in zip(x.split(bs), y.split(bs)):
            adv = make(model, xb, yb, a)
            with torch.no_grad(): parts.append(model(adv).argmax(1) == yb)
        return torch.cat(parts)
    return correct


def ours(criterion, bf16):
    return lambda model, x, y, a, bs: robust_correct(model, x, y, a, batch_size=bs, criterion=criterion, bf16=bf16)


# Where the hardware has no bfloat16, it is emulated and several times slower than float32: nobody would use it there.
HAS_BF16 = torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()
OURS = {'same work': ours('last_step', False), 'early exit': ours('any_step', False)}
if HAS_BF16: OURS |= {'same work, bf16': ours('last_step', True), 'early exit, bf16': ours('any_step', True)}


def rivals(attack):
    "Those that are installed and know this attack: the libraries have no margin loss in a fixed ball."
    known = dict(plain=plain_loop)
    if attack.loss == 'ce':
        if importlib.util.find_spec('torchattacks'): known['torchattacks'] = torchattacks_pgd
        if importlib.util.find_spec('foolbox'): known['foolbox'] = foolbox_pgd
    return {name: judged(make) for name, make in known.items()}


def compare(model, x, y, attack, o):
    "One record for each rival."
    methods = OURS | rivals(attack)
    few = slice(0, o.batch_size)
    for f in methods.values(): f(model, x[few], y[few], replace(attack, steps=1), o.batch_size)   # warm up
    runs = turns({m: lambda r, f=f: f(model, x, y, attack, o.batch_size) for m, f in methods.items()}, o)
    seconds = {m: [s for s, _ in run] for m, run in runs.items()}
    accuracy = {m: run[0][1].float().mean().item() for m, run in runs.items()}
    return [record(m, seconds, accuracy) for m in methods if m not in OURS]


def record(rival, seconds, accuracy):
    "The ratios, repeat by repeat: their seconds over ours."
    return dict(rival=rival, ratios={k: ratios(seconds[rival], seconds[k]) for k in OURS},
                seconds={k: seconds[k] for k in (rival, *OURS)}, robust={k: accuracy[k] for k in (rival, *OURS)})


def table(rows):
    "Markdown: medians, and the range over repeats."
    head = ('network', 'attack', 'steps', 'against', 'theirs, s', *(f'{k}: ratio' for k in OURS),
            'robust accuracy, %: theirs', *OURS)
    return markdown(head, [(r['network'], r['attack'], r['steps'], r['rival'], spread(r['seconds'][r['rival']]),
                            *(spread(r['ratios'][k]) for k in OURS),
                            *(f'{100 * r["robust"][k]:.1f}' for k in (r['rival'], *OURS))) for r in rows])


def summary(rows):
    "By the networks' norm: the ratios' median and least; and how far our robust accuracy is above and below theirs."
    parts = [['networks', 'pairs', *(f'{k}: median, least' for k in OURS), *(f'{k}: most points above, below' for k in OURS)]]
    for norm in dict.fromkeys(r['network'].split()[1] for r in rows):
        some = [r for r in rows if r['network'].split()[1] == norm]
        mid = {k: [median(r['ratios'][k]) for r in some] for k in OURS}
        gap = {k: [100 * (r['robust'][k] - r['robust'][r['rival']]) for r in some] for k in OURS}
        parts.append([f'norm: {norm}', len(some), *(f'{median(v):.2f}, {min(v):.2f}' for v in mid.values()),
                      *(f'{max(0., *v):.1f}, {max(0., *(-x for x in v)):.1f}' for v in gap.values())])
    return 'Over all these pairs:\n\n' + markdown(parts[0], parts[1:])


def shares(model, x, y, o):
    "Where a gradient step of ours spends its time: share by kind of operation."
    kinds = dict(convolutions='conv', pooling='pool')
    with optimised_inference(model, x) as net:
        input_gradient(net, x, y)
        with torch.profiler.profile() as p:
            for _ in range(5): input_gradient(net, x, y)
    total = {e.key: e.self_cpu_time_total for e in p.key_averages()}
    share = {k: sum(t for name, t in total.items() if word in name) / sum(total.values()) for k, word in kinds.items()}
    return ', '.join(f'{k} {100 * v:.0f} %' for k, v in share.items()) + f', all else {100 * (1 - sum(share.values())):.0f} %'


NOTES = """
*Same work* lets every image take all steps, as the other libraries do, and classifies it after the last one
(`criterion='last_step'`, the paper's). *Early exit* (`criterion='any_step'`, our default) stops an image at the first
step at which it is misclassified; the images that are left fill the batches. Its robust accuracy can only be lower or
equal, because an image that was misclassified on the way and classified correctly later counts as misclassified. It gains
where the attack succeeds on some images, and nothing where it succeeds on none. *bf16* (`bf16=True`) takes the gradients
in bfloat16 except in the last tenth of the steps, and classifies in float32; it is off by default, and no published row uses
it. It is left out where the hardware has no bfloat16. The libraries have no margin loss (cw) in a fixed ball, so there we compare with the plain loop alone.

In float32 most of the time of both sides goes to the same convolutions (shares above). Without a normalisation layer to
fold, only the memory layout can make them faster.
"""


REWRITE_NOTES = """\
What each rewriting of the network brings by itself to one gradient of a batch, as the time of the model as it is over
the time of the rewritten model. *fold* moves a normalisation layer in evaluation mode into the convolution before it;
*channels last* changes the memory layout; *lean ReLUs* come after max-pooling and overwrite their input; *all* is what the attack runs."""

REWRITES = {'fold': lambda net, x: fold_norms(net), 'channels last': lambda net, x: ChannelsLast(net),
            'lean ReLUs': lambda net, x: lean_relus(net), 'all': lambda net, x: ChannelsLast(lean_relus(fold_norms(net)))}


def rewrites(model, x, y, o):
    "By how much each rewriting makes a gradient step faster: time of the model as it is over time of the rewritten one."
    with frozen(model):
        nets = dict(model=model) | {k: f(deepcopy(model), x) for k, f in REWRITES.items()}
        for net in nets.values(): input_gradient(net, x, y)                                        # warm up
        seconds = {k: [s for s, _ in run] for k, run in turns({k: lambda r, n=n: input_gradient(n, x, y) for k, n in nets.items()}, o).items()}
    return {k: ratios(seconds['model'], seconds[k]) for k in REWRITES}


def rewrite_table(networks, x, y, o):
    "What each rewriting brings on its own, for every network."
    few = slice(0, o.batch_size)
    found = {name: rewrites(trained(*name.split(), o), x[few], y[few], o) for name in networks}
    return markdown(('network', *REWRITES), [(name, *(spread(r[k]) for k in REWRITES)) for name, r in found.items()])


def cases(o):
    "Every network under every attack, the short ones first."
    for steps, arch, norm in product(o.steps, o.archs, o.norms):
        model = trained(arch, norm, o)
        for ball, loss in product(o.balls, o.losses):
            eps = EPS[o.data][ball]
            yield f'{arch} {norm}', model, Attack(ball, eps, loss, steps, STEP[ball] * eps)


def settings():
    p = parser(__doc__)
    p.add_argument('--archs', nargs='+', default=['vgg11'])
    p.add_argument('--norms', nargs='+', default=['bn'])
    p.add_argument('--balls', nargs='+', default=['l2'])
    p.add_argument('--losses', nargs='+', default=['ce'])
    p.add_argument('--steps', nargs='+', type=int, default=[10])
    p.add_argument('--width', type=float, default=.25)
    p.add_argument('--images', type=int, default=1000)
    p.add_argument('--train-images', type=int, default=2000)
    p.add_argument('--epochs', type=int, default=6)
    p.add_argument('--batch-size', type=int, default=256)
    p.add_argument('--go-on', action='store_true', help='keep the cases in bench/out/attacks.json, of a run of this kind')
    if p.parse_known_args()[0].full: p.set_defaults(**FULL)    # what is given beside it still counts
    return options(p)


def kind(o):
    "What must be the same for cases of two runs to stand in one table."
    same = ('data', 'images', 'train_images', 'epochs', 'width', 'batch_size', 'repeats', 'threads', 'device', 'cpu_time')
    return {k: getattr(o, k) for k in same} | dict(processor=processor(), torch=torch.__version__)


def kept(o):
    "The cases of a run that was ended early."
    if not o.go_on: return []
    if not OUT.is_file(): sys.exit(f'{OUT} is not there: leave out --go-on.')
    last = json.loads(OUT.read_text())
    other = [f'{k} ({last["kind"].get(k)})' for k, v in kind(o).items() if last['kind'].get(k) != v]
    if other: sys.exit(f'{OUT} was measured with another {other[0]}: give the same, or leave out --go-on.')
    o.loads = [*last['loads'], o.load]
    return last['rows']


def report(rows, x, y, o):
    "Rewrite the section, and the numbers behind it."
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(dict(kind=kind(o), loads=getattr(o, 'loads', [o.load]), rows=rows), indent=1))
    about = (f'{len(x)} test images of {o.data}, batches of {o.batch_size}; networks of width {o.width} trained on '
             f'{o.train_images} images for {o.epochs} epochs.')
    of = prod(map(len, (o.steps, o.archs, o.norms, o.balls, o.losses)))
    done = len({(r['network'], r['attack'], r['steps']) for r in rows})
    if done < of: about += f' **{done} of {of} cases: the run was ended before the others.**'
    few, names = slice(0, o.batch_size), dict.fromkeys(r['network'] for r in rows)
    speed = rewrite_table(names, x, y, o)
    left = '\n'.join(f'- A gradient of ours, {n}: {shares(trained(*n.split(), o), x[few], y[few], o)}.' for n in names if o.device == 'cpu')
    publish('Attacks', '\n\n'.join([about, table(rows), summary(rows), REWRITE_NOTES, speed, left, NOTES]), o, 'torchattacks', 'foolbox')


def main():
    o = settings()
    rows = kept(o)
    have = {(r['network'], r['attack'], r['steps']) for r in rows}
    x, y = held_out(o)
    for network, model, a in cases(o):
        about = dict(network=network, attack=f'{a.loss} {a.ball} {a.eps:.3g}', steps=a.steps)
        if tuple(about.values()) in have: continue
        rows += [about | r for r in compare(model, x, y, a, o)]
        report(rows, x, y, o)       # after each case: all of them take hours
    if len({(r['network'], r['attack'], r['steps']) for r in rows}) == len(have):   # none was left: the page alone
        o.loads.pop()
        report(rows, x, y, o)


if __name__ == '__main__': main()
