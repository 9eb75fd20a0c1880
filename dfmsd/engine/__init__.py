"""The training engine: one loop for every recipe, survival, one teacher after another.

`loop` is the loop; `steps` what one step does, `draws` what is random in it, `guard` what happens
to losses that are not finite; `keeping` the checkpoints, `history` the log; `optimise` optimiser
and learning rate; `stages` the loop over teachers.
"""

from dfmsd.engine.draws import step_seed as step_seed
from dfmsd.engine.guard import NonFiniteLossError as NonFiniteLossError
from dfmsd.engine.guard import total_loss as total_loss
from dfmsd.engine.history import History as History
from dfmsd.engine.loop import Batches as Batches
from dfmsd.engine.loop import fit as fit
from dfmsd.engine.optimise import Schedule as Schedule
from dfmsd.engine.optimise import make_optimizer as make_optimizer
from dfmsd.engine.stages import Stage as Stage
from dfmsd.engine.stages import run_stages as run_stages
from dfmsd.engine.steps import to_device as to_device
