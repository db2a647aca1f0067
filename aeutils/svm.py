"""The support vector machine: scikit-learn's SVC (Chang and Lin, 2011), fitted by oneDAL where that is installed."""

try:
    from sklearnex.svm import SVC
except ImportError:  # no wheels for ARM: the same machine, fitted more slowly
    from sklearn.svm import SVC

__all__ = ["SVC"]
