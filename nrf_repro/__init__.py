"""Does batch normalisation learn non-robust features? A reproduction, and tools that measure any PyTorch classifier."""
from nrf_repro._lazy import lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy(__name__, {
    'measure': 'measure Measurement attacks_at',
    'attacks': 'Attack PAPER_ATTACKS robust_correct input_gradient gradient_underflows',
    'features': 'ligs usefulness robust_usefulness',
    'data': 'Images load synthetic',
    'models': 'build_model load_model save_model',
    'training': 'Recipe RECIPES Monitor fit',
    'experiment': 'load_profile load_published leaderboard',
    'results': 'read_rows write_rows load_claims decide',
    'report': 'render compare'})
