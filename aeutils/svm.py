"""The support vector machine of the studies: scikit-learn's SVC (Chang and Lin, 2011), by oneDAL where that is there.

One fit to all labels takes seconds; many smaller ones, two at a time, are faster by scikit-learn's own (notebook 03).
"""

import warnings

try:
    from sklearnex.svm import SVC
except ImportError:  # no wheels for ARM: the same machine, fitted more slowly
    from sklearn.svm import SVC

# in a thread of ours a fit takes all of oneDAL's threads, as it does anywhere
warnings.filterwarnings("ignore", "'Threading' parallel backend is not supported", UserWarning)

__all__ = ["SVC"]
