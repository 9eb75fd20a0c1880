"""What lives as long as the tests is left out of the garbage collection after each training.

Collecting among the modules and tests of a whole session takes a second each time.
"""

import gc


def pytest_collection_finish():
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()
