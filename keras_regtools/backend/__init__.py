"""Internal: the only room that names tensorflow, jax or torch; derivatives and compilation.

Every backend offers the same functions. The first three turn a scalar function
`fn(params, *args)`, where `params` is a list of tensors and `args` are passed through without
being differentiated, into another function, not yet compiled:

- `value_and_grad(fn)`: `(params, *args)` -> `(value, gradient)`;
- `hvp(fn)`: `(params, vectors, *args)` -> the Hessian times each of the vectors, as a list; they
  share the forward and the backward pass;
- `gnvp(outputs, loss)`, of `outputs(params, *args)`, a list of tensors and a structure that no
  derivative goes through, and a scalar `loss(outputs, structure, *args)`: the same for the
  Gauss-Newton matrix Jᵀ (∇² loss) J. This and `hvp` take a list, `hidden`, to which pairs of type
  and name of operations are added whose second derivative the backend would take for zero;
- `jit(fn)` compiles;
- `mean_over(fn)` compiles a function `fn(*args, x, y, sample_weight)` -> `(scalars, tensors)`, a
  list and a structure, into `(args, batches)` -> their means over the samples of `Batches`. The
  scalars are added in double precision; `tensors` as they are;
- `frozen_draws()`, a context in which unseeded random draws repeat and leave no trace;
- `replicas(variable)`: the values that a variable has on each replica, as arrays;
- `replica_count(variable)`: how many there are;
- `peak_memory()`: a `PeakMemory` of the processor or accelerator;
- `process_index()`: which of the processes that train one model together this is;
- `all_reduce(tensors)`, in a step outside of branches: their sums over the replicas;
- `require(condition, message, assigned)`: an error in a running graph, where `assigned` is no
  variable whose assignments are only noted;
- `conditional_assign(condition, update, variables, others, given, assigned)` assigns the list
  `update(kept, given)` to the variables if the condition holds. `variables` and `others`, which are
  only read, are dicts of variables, `kept` is a dict of all their values, and `given` a structure
  of tensors, the only ones that `update` may use. Equal updates are traced once. `assigned` is a
  variable that was assigned just before, which tells whether assignments are only noted;
- `once(fn, *args)`: `fn(*args)`, of tensors or `None`; a backend that traces does it once for all
  numbers of channels, the last axis;
- `cond(condition, one, other)`: `one()` if the condition holds, `other()` if not;
- `StepAccumulator(shape, compiled, like)` gathers arrays that a step, compiled by XLA or not, gives
  now and then, on the replicas of the variable `like`: `put(condition, values)` in the step adds
  the tensor `values()`, nowhere negative, if the condition holds; `read()` gives how many there
  were, their mean and their maximum, and starts again;
- `traced_function()`: what stands for the training step that is traced, and its replica, if the
  backend knows it; `(None, None)` otherwise;
- `separate_step(model)` makes the training step of a model anew, apart from others there are.
- `watch_steps(model, due, watch)` makes the training step of a model anew. Where that is faster it
  calls `watch(due(n))` before the n-th step from now, and `due(n)` tells whether to watch it;
- `snapshot(condition, variables)`: their values before an update, needed only if the condition
  holds;
- `after(tensor, value)`: a value that is there only if the tensor is: a step may find no data;
- `recompute_apart(gradient)`: a gradient once more, for a branch of a step that XLA does not
  compile, which leaves the update compiled as if nobody looked;
- `dense(gradient)`: a gradient as one tensor;
- `squared_norms(tensors)`: the sum of squares of each, as one tensor;
- `draws()` and `same_draws(draws, part)`, a context in which unseeded draws that no variables of
  the model hold are those that followed `draws()`, others for each part, and leave no trace;
- `dropout(x, rate, shape, seeds)`: the outputs of `keras.random.dropout`, with a rate that is in a
  variable of three: the rate, 1 less it, and the inverse of that;
- `describe()`: the backend's version and what it makes of the processor, as a dict of strings;
- `assign_row(variable, index, value, assigned)` assigns one entry of a variable.
"""

import importlib

import keras

_name = keras.backend.backend()
if _name in ("tensorflow", "jax", "torch"):
    _chosen = importlib.import_module(f"keras_regtools.backend._{_name}")
else:
    raise ImportError(
        "keras_regtools needs derivatives. Expected the Keras backend to be one of 'tensorflow', "
        f"'jax', 'torch'. Received: {_name!r}"
    )

StepAccumulator = _chosen.StepAccumulator
after = _chosen.after
recompute_apart = _chosen.recompute_apart
cond = _chosen.cond
dense = _chosen.dense
dropout = _chosen.dropout
draws = _chosen.draws
same_draws = _chosen.same_draws
describe = _chosen.describe
frozen_draws = _chosen.frozen_draws
gnvp = _chosen.gnvp
snapshot = _chosen.snapshot
hvp = _chosen.hvp
jit = _chosen.jit
mean_over = _chosen.mean_over
once = _chosen.once
assign_row = _chosen.assign_row
replicas = _chosen.replicas
replica_count = _chosen.replica_count
process_index = _chosen.process_index
peak_memory = _chosen.peak_memory
all_reduce = _chosen.all_reduce
require = _chosen.require
squared_norms = _chosen.squared_norms
traced_function = _chosen.traced_function
value_and_grad = _chosen.value_and_grad
separate_step = _chosen.separate_step
watch_steps = _chosen.watch_steps
conditional_assign = _chosen.conditional_assign

# Variables that are not the model's are constants of a compiled step.
CONSTANTS_OUTSIDE = _name == "jax"
# TensorFlow's moments hide the mean inside the variance from second derivatives.
MOMENTS_HAVE_SECOND_DERIVATIVES = _name != "tensorflow"
# PyTorch's are computed as E[x²] − E[x]², which cancels, down to negative variances.
MOMENTS_CANCEL = _name == "torch"

__all__ = [
    "StepAccumulator",
    "CONSTANTS_OUTSIDE",
    "MOMENTS_CANCEL",
    "MOMENTS_HAVE_SECOND_DERIVATIVES",
    "after",
    "recompute_apart",
    "cond",
    "dense",
    "draws",
    "dropout",
    "describe",
    "frozen_draws",
    "gnvp",
    "snapshot",
    "hvp",
    "jit",
    "mean_over",
    "once",
    "assign_row",
    "replicas",
    "replica_count",
    "process_index",
    "peak_memory",
    "all_reduce",
    "require",
    "same_draws",
    "squared_norms",
    "traced_function",
    "value_and_grad",
    "separate_step",
    "watch_steps",
    "conditional_assign",
]
