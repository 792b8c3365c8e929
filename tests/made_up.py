"Rows of a final evaluation that never took place, with answers that can be worked out by hand."
from nrf_repro.results.rows import NAMED_NORMS, make_row

MADE_UP = {'none': (.975, .82, .80), 'bn': (.988, .58, .60), 'in': (.96, .72, .72),  # clean, PGD l2, LIGS
           'ln': (.98, .74, .73), 'gn': (.982, .73, .74)}
MADE_UP_ATTACKS = dict(pgd_l2=1., pgd_linf=8 / 255, cw_l2=1., cw_linf=8 / 255)

def made_up_rows(norms=NAMED_NORMS, # a line of made-up numbers each
                 seeds=(0, 1, 2),   # each moves every number by .8 points
                 n=400,             # images that nobody classified
                 **fields):         # anything else that a row holds, e.g. dataset='cifar10'
    "Rows of a final evaluation that never took place, to try tables and figures on."
    common = dict(experiment='final', dataset='digits', arch='vgg11', width=.125, regime='standard', epoch=8,
                  profile='made-up', n=n)
    for norm, (clean, robust, ligs) in ((m, MADE_UP[m]) for m in norms):
        for seed in seeds:
            shift = .008 * (seed - 1)
            def row(metric, value, **more):
                return make_row(**common | dict(metric=metric, norm=norm, seed=seed, value=value) | more | fields)
            yield row('clean_accuracy', min(clean + shift, 1))
            yield row('ligs', ligs - shift, sigma=.05, draws=1)
            for k, (attack, eps) in enumerate(MADE_UP_ATTACKS.items()):
                value = robust - .03 * k + shift * (2 if norm == 'bn' else 1)
                yield row('robust_accuracy', value, attack=attack, eps=eps, steps=10, step_size=eps / 4, reading='any')
