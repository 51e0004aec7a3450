"""Every fit of this file has the same loss, optimizer and shapes where it can: they are compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from numdl.optimize import train

RATE = 0.1
OPTIMIZER = optax.sgd(RATE)
DATA = np.random.default_rng(0)
X, TARGETS = DATA.normal(size=(24, 3)), DATA.normal(size=24)
START = {"b": np.zeros(()), "w": np.array([0.5, -1.0, 0.25])}
TRACED = []


def loss(params, batch):
    TRACED.append(1)
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2) / 2


def problem():
    dtype = jnp.result_type(float)
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), (START, (X, TARGETS)))


def descent(batches, rate=RATE):
    """NumPy's gradient descent: (w, b, losses)."""
    w, b, losses = START["w"].copy(), 0.0, []
    for x, y in batches:
        error = x @ w + b - y
        losses.append(np.mean(error**2) / 2)
        w, b = w - rate * x.T @ error / len(y), b - rate * np.mean(error)
    return w, b, np.array(losses)


def close(actual, desired):
    np.testing.assert_allclose(actual, desired, rtol=200 * float(jnp.finfo(jnp.result_type(float)).eps))


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.float32
def test_the_whole_batch_is_numpys_gradient_descent():
    params, data = problem()
    params, history = train.fit(loss, params, OPTIMIZER, train.whole(data), steps=30)
    w, b, losses = descent([(X, TARGETS)] * 30)
    close(params["w"], w)
    close(params["b"], b)
    close(history.loss, losses)
    assert history.stopped == "finished" and history.steps == 30
    assert history.loss.dtype == jnp.result_type(float)


def test_an_iterable_is_read_again_and_batches_may_differ_in_length():
    params, data = problem()
    batches = [jax.tree.map(lambda leaf, at=at: leaf[at : at + 7], data) for at in range(0, 24, 7)]
    params, history = train.fit(loss, params, OPTIMIZER, batches, steps=10)
    plain = [(X[at : at + 7], TARGETS[at : at + 7]) for at in range(0, 24, 7)]
    w, _, losses = descent((plain * 3)[:10])
    close(params["w"], w)
    close(history.loss, losses)


@pytest.mark.parametrize("when", [1, 7, 300])
def test_a_buffer_that_a_generator_refills_is_copied_in_time(when):
    data = np.random.default_rng(0).normal(size=(100, 3))

    def refilled():
        held = np.empty(3)
        for row in data:
            held[:] = row
            yield held

    def fit(batches):
        observe = {"params": (train.every(when), lambda params: params)}
        loss = lambda params, batch: jnp.mean((params - batch) ** 2)  # noqa: E731
        params, history = train.fit(loss, jnp.zeros(3), optax.sgd(0.1), batches, steps=100, observe=observe)
        return np.asarray(params), history.loss

    found, expected, params = fit(refilled()), [], np.zeros(3)
    for row in data:
        expected.append(np.mean((params - row) ** 2))
        params = params - 0.1 * 2 / 3 * (params - row)
    np.testing.assert_allclose(found[0], params, rtol=1e-6)
    np.testing.assert_allclose(found[1], expected, rtol=1e-5)


def test_a_generator_that_ends_ends_training():
    params, data = problem()
    _, history = train.fit(loss, params, OPTIMIZER, (data for _ in range(5)), steps=100)
    assert history.stopped == "batches ended" and "5 steps" in history.detail and history.steps == 5
    close(history.loss, descent([(X, TARGETS)] * 5)[2])


@pytest.mark.float32
def test_data_on_the_device_comes_in_the_order_of_its_rows(key):
    params, data = problem()
    source = train.resident(data, size=7, key=key)
    params, history = train.fit(loss, params, OPTIMIZER, source, steps=9)
    rows = source.rows(0, 9)[0][:9]
    w, _, losses = descent([(X[row], TARGETS[row]) for row in rows])
    close(params["w"], w)
    close(history.loss, losses)


def test_epochs_are_permutations(key):
    numbers = np.arange(10)
    drop = train.resident(numbers, size=4, key=key).rows(0, 6)[0][:6].reshape(3, 8)
    assert all(len(set(epoch)) == 8 for epoch in drop)
    carry = train.resident(numbers, size=4, key=key, remainder="carry").rows(0, 5)[0][:5].reshape(2, 10)
    assert all(set(epoch) == set(numbers) for epoch in carry)
    assert (carry[0] != carry[1]).any() and (drop[0] != drop[1]).any()
    np.testing.assert_array_equal(drop[0], carry[0][:8])
    own = train.resident(numbers, size=4, key=None).rows(1, 2)[0][:2]
    np.testing.assert_array_equal(own, [[4, 5, 6, 7], [0, 1, 2, 3]])
    other = train.resident(numbers, size=4, key=jax.random.key(1)).rows(0, 2)[0][:2]
    assert (other.ravel() != drop[0]).any()
    assert train.resident(numbers, size=4, key=key).steps_per_epoch == 2


def test_rows_do_not_depend_on_where_a_chunk_begins(key):
    for remainder in ("drop", "carry"):
        source = train.resident(np.arange(10), size=4, key=key, remainder=remainder)
        whole = source.rows(0, 12)[0][:12]
        parts = [source.rows(first, count)[0][:count] for first, count in ((5, 4), (0, 5), (9, 3))]
        np.testing.assert_array_equal(np.concatenate([parts[1], parts[0], parts[2]]), whole)


def test_observations_change_no_bit_and_see_the_parameters_of_their_step(key):
    params, data = problem()
    source = train.resident(data, size=7, key=key)
    plain, history = train.fit(loss, params, OPTIMIZER, source, steps=40)
    observe = {
        "w": (train.every(7), lambda params: params["w"]),
        "pair": ([0, 3, np.int64(40), 99], lambda params: {"b": params["b"], "nested": (params["w"][0],)}),
        "odd": (lambda step: step in (5, 6), lambda params: params["b"]),
        "late": (train.every(10, start=15), lambda params: params["b"]),
    }
    watched, seen = train.fit(loss, params, OPTIMIZER, source, steps=40, observe=observe)
    same(plain, watched)
    same(history.loss, seen.loss)
    assert {name: list(steps) for name, (steps, _) in seen.observed.items()} == {
        "w": [0, 7, 14, 21, 28, 35],
        "pair/b": [0, 3, 40],
        "pair/nested/0": [0, 3, 40],
        "odd": [5, 6],
        "late": [15, 25, 35],
    }
    rows = source.rows(0, 40)[0]
    close(seen.observed["w"][1][3], descent([(X[row], TARGETS[row]) for row in rows[:21]])[0])
    same(seen.observed["pair/b"][1][-1], np.asarray(plain["b"]))


def test_chunks_of_all_lengths_are_one_program(key):
    params, data = problem()
    source = train.resident(data, size=5, key=key)
    TRACED.clear()
    train.fit(loss, params, OPTIMIZER, source, steps=60, observe={"b": ([1, 2, 4, 9, 21, 33], lambda p: p["b"])})
    first = len(TRACED)
    train.fit(loss, params, OPTIMIZER, source, steps=60)
    # Each call looks at the loss before it compiles: its shape, and whether it has convolutions.
    assert first <= 5 and len(TRACED) - first <= 2


def test_a_partial_binds_data_as_an_argument():
    params, data = problem()
    counted = []

    def bound(x, params, y):
        counted.append(1)
        return loss(params, (x, y))

    ends = []
    for scale in (1.0, 2.0):
        partial = jax.tree_util.Partial(bound, scale * data[0])
        ends.append(train.fit(partial, params, OPTIMIZER, train.whole(data[1]), steps=3)[0])
        counted.append("end")
    close(ends[1]["w"], descent([(2 * X, TARGETS)] * 3)[0])
    assert counted[counted.index("end") + 1 :].count(1) <= 2


def test_descend_is_the_same_descent(key):
    params, data = problem()
    batches = jax.tree.map(lambda leaf: leaf[train.resident(data, size=7, key=key).rows(0, 9)[0][:9]], data)
    one, losses = jax.jit(lambda params, batches: train.descend(loss, params, OPTIMIZER, batches))(params, batches)
    other, history = train.fit(loss, params, OPTIMIZER, train.resident(data, size=7, key=key), steps=9)
    close(one["w"], other["w"])
    close(losses, history.loss)


@pytest.mark.float32
def test_each_step_has_its_own_key(key):
    params, data = problem()

    def noisy(params, batch, key):
        return loss(params, batch) + jax.random.normal(key, (), params["b"].dtype)

    _, history = train.fit(noisy, params, optax.sgd(0.0), train.whole(data), steps=4, key=key)
    noise = [jax.random.normal(jax.random.fold_in(key, step), (), jnp.result_type(float)) for step in range(4)]
    close(history.loss - loss(params, data), noise)


@pytest.mark.float32
def test_the_step_that_diverges_is_found_and_the_parameters_before_it_kept():
    params, data = problem()
    rate = 1e3
    with np.errstate(over="ignore", invalid="ignore"):
        kind = np.finfo(jnp.result_type(float)).dtype
        w, b, losses = START["w"].astype(kind), kind.type(0), []
        while np.isfinite(value := np.mean((error := X.astype(kind) @ w + b - TARGETS.astype(kind)) ** 2)):
            losses.append(value / 2)
            w, b = w - kind.type(rate) * X.T.astype(kind) @ error / kind.type(24), b - kind.type(rate) * np.mean(error)
    good, history = train.fit(loss, params, optax.sgd(rate), train.whole(data), steps=500)
    assert history.stopped == "diverged" and history.steps == len(losses)
    assert f"at step {len(losses)} the loss became inf" in history.detail and "the loss itself" in history.detail
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(good))
    np.testing.assert_allclose(history.loss, losses, rtol=1e-3)
    again, _ = train.fit(loss, params, optax.sgd(rate), train.whole(data), steps=len(losses))
    same(good, again)


def test_the_first_layer_that_overflows_is_named():
    def deep(params, x):
        for name in ("first", "second", "third"):
            x = jnp.exp(x @ params[name]["w"])
        return jnp.mean(x)

    params = {name: {"w": jnp.eye(2)} for name in ("first", "second", "third")}
    batches = [jnp.ones((3, 2))] * 3 + [jnp.full((3, 2), 8.0)]
    kept, history = train.fit(deep, params, optax.sgd(0.0), batches, steps=9)
    # exp(8) is a number, exp(exp(8)) is none: it comes out of the second exponential, into the third layer.
    assert history.stopped == "diverged" and history.steps == 3
    assert "at step 3 the loss became" in history.detail and "the state of layer 'third/w'" in history.detail
    same(kept, params)


def test_a_gradient_of_nan_is_found_even_if_no_loss_shows_it():
    def kinked(params, x):
        return jnp.mean(x) + jnp.sqrt(params["bad"] ** 2) + params["good"] ** 2

    params = {"bad": jnp.asarray(0.0), "good": jnp.asarray(1.0)}
    for steps in (1, 5):
        kept, history = train.fit(kinked, params, optax.sgd(0.1), train.whole(jnp.ones(3)), steps=steps)
        assert history.stopped == "diverged" and history.steps == 0
        assert "at step 0 the parameters were lost" in history.detail and "gradient of 'bad'" in history.detail
        same(kept, params)


def test_convolutions_run_as_single_programs_with_the_same_result():
    x = jnp.asarray(DATA.normal(size=(2, 5, 5, 1)))

    def convolved(params, x):
        y = jax.lax.conv_general_dilated(x, params["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.mean((y - 1) ** 2)

    params = {"k": jnp.ones((3, 3, 1, 1)) / 9}
    kept, history = train.fit(convolved, params, optax.sgd(0.1), train.whole(x), steps=5)
    expected, losses = train.descend(convolved, params, optax.sgd(0.1), jnp.stack([x] * 5))
    close(history.loss, losses)
    np.testing.assert_allclose(kept["k"], expected["k"], rtol=1e-5)
    lost, history = train.fit(convolved, params, optax.sgd(1e25), train.whole(x), steps=50)
    assert history.stopped == "diverged" and history.steps <= 13 and np.isfinite(lost["k"]).all()


def test_early_stopping_returns_the_best():
    params, data = problem()
    scripted = iter([5.0, 3.0, np.nan, 2.9, 1.0, 1.0, 4.0, 0.0])
    seen = []

    def validation(params):
        seen.append(params)
        return next(scripted)

    stop = train.early_stopping(train.every(2), validation, patience=2, gain=0.2)
    best, history = train.fit(loss, params, OPTIMIZER, train.whole(data), steps=30, early_stopping=stop)
    # 3.0 at step 2 is improved on by 1.0 at step 8 only after two misses: 2.9 gains too little.
    assert history.stopped == "stopped early" and "step 6" in history.detail and history.steps == 6
    same(best, seen[1])
    np.testing.assert_array_equal(history.observed["validation"][1], [5.0, 3.0, np.nan, 2.9])
    scripted = iter(np.arange(9.0)[::-1])
    stop = train.early_stopping(train.every(10), validation, patience=1)
    last, history = train.fit(loss, params, OPTIMIZER, train.whole(data), steps=30, early_stopping=stop)
    assert history.stopped == "finished" and history.steps == 30
    close(last["w"], descent([(X, TARGETS)] * 30)[0])


def test_clipping_schedules_and_decay_are_optaxs():
    params, data = problem()
    optimizer = optax.chain(
        optax.clip_by_global_norm(0.1), optax.add_decayed_weights(0.5), optax.sgd(optax.linear_schedule(0.2, 0.0, 4))
    )
    kept, _ = train.fit(loss, params, optimizer, train.whole(data), steps=6)
    w, b = START["w"].copy(), 0.0
    for step in range(6):
        error = X @ w + b - TARGETS
        gradient = np.append(X.T @ error, np.sum(error)) / 24
        gradient *= min(1, 0.1 / np.linalg.norm(gradient))
        rate = max(0.0, 0.2 * (1 - step / 4))
        w, b = w - rate * (gradient[:3] + 0.5 * w), b - rate * (gradient[3] + 0.5 * b)
    np.testing.assert_allclose(kept["w"], w, rtol=1e-5)
    np.testing.assert_allclose(kept["b"], b, rtol=1e-5)


def test_a_line_search_gets_what_it_asks_for():
    params, data = problem()
    search = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=15))
    _, history = train.fit(loss, params, search, train.whole(data), steps=12)
    assert (np.diff(history.loss) < 0).all()


@pytest.mark.float32
def test_dtypes_stay_whatever_a_schedule_makes_of_them():
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), START)
    data = jnp.asarray(X, jnp.float32), jnp.asarray(TARGETS, jnp.float32)
    schedule = lambda count: jnp.asarray(0.1, jnp.result_type(float)) / (1 + count)  # noqa: E731
    kept, history = train.fit(loss, params, optax.adam(schedule), train.whole(data), steps=3)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
    assert history.loss.dtype == np.float32
    same(params["w"], START["w"].astype(np.float32))  # the caller's parameters are alive and as they were


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"steps": 0}, ValueError, "steps must be an integer >= 1; got 0"),
        ({"loss": 3}, TypeError, "loss must be a function; got 3"),
        ({"loss": lambda params, batch: params["w"]}, ValueError, "loss must return one real number"),
        ({"optimizer": 0.1}, TypeError, "optimizer must be an optax transformation.*got 0.1"),
        ({"params": {"w": jnp.arange(3)}}, ValueError, "params must hold at least one floating-point array.*got w"),
        ({"params": {"w": jnp.array([1.0, jnp.nan])}}, ValueError, "params.'w'. must be finite; got 1 entries"),
        ({"params": {}}, ValueError, "params must hold at least one floating-point array"),
        ({"batches": 5}, TypeError, "batches must be an iterable.*got 5"),
        ({"batches": []}, ValueError, "batches must yield at least one batch"),
        ({"batches": [np.array(["a"])]}, TypeError, "batches must be an array of numbers; got dtype"),
        ({"batches": [jax.random.key(0)]}, TypeError, "batches must hold arrays of numbers; got a random key"),
        ({"key": 1}, TypeError, "key must be a typed key"),
        ({"observe": {"a": 3}}, TypeError, "observe.'a'. must be .when, function.; got 3"),
        ({"observe": {"a": ("x", len)}}, TypeError, "observe.'a'..0. must be train.every.*got 'x'"),
        ({"observe": {"a": ([-1], len)}}, ValueError, "observe.'a'..0. must be an integer >= 0; got -1"),
        ({"observe": {"validation": ([1], len)}}, ValueError, "other than 'validation'"),
        ({"observe": {"a": ([0], lambda params: "text")}}, TypeError, "observe.'a'. must return a number"),
        ({"early_stopping": 3}, TypeError, "early_stopping must be an EarlyStopping.*got 3"),
        ({"checkpoint": 0}, ValueError, "checkpoint must be an integer >= 1; got 0"),
        ({"folder": 3}, TypeError, "folder must be a path; got 3"),
    ],
)
def test_bad_input_is_named(change, error, message):
    params, data = problem()
    arguments = {"loss": loss, "params": params, "optimizer": OPTIMIZER, "batches": train.whole(data), "steps": 5}
    arguments |= change
    with pytest.raises(error, match=message):
        train.fit(**arguments)


def test_bad_sources_and_schedules_are_named(key):
    with pytest.raises(ValueError, match="size must be an integer in 1..4; got 5"):
        train.resident(np.ones(4), size=5, key=key)
    with pytest.raises(ValueError, match="data must have leaves of one length"):
        train.resident((np.ones(4), np.ones(3)), size=2, key=key)
    with pytest.raises(ValueError, match="remainder must be one of drop, carry; got 'pad'"):
        train.resident(np.ones(4), size=2, key=key, remainder="pad")
    with pytest.raises(ValueError, match="period must be an integer >= 1; got 0"):
        train.every(0)
    with pytest.raises(ValueError, match="patience must be an integer >= 1; got 0"):
        train.early_stopping(train.every(1), len, patience=0)
    with pytest.raises(ValueError, match="data must hold at least one array"):
        train.whole(())


def test_the_bar_is_drawn_where_it_is_wanted(capsys):
    params, data = problem()
    train.fit(loss, params, OPTIMIZER, train.whole(data), steps=30, progress=True)
    drawn = capsys.readouterr().err
    assert "30/30" in drawn and "steps/s" in drawn and "loss" in drawn
    train.fit(loss, params, OPTIMIZER, train.whole(data), steps=30)  # captured: not a terminal
    assert capsys.readouterr().err == ""


def test_a_history_is_one_file_and_draws_itself(tmp_path):
    observed = {"a/b": (np.array([0, 2]), np.array([1.0, 0.5], np.float32)), "v": (np.array([1]), np.ones((1, 3)))}
    history = train.History(np.array([3.0, 2.0, 1.0], np.float32), observed, "diverged", "at step 3")
    history.save(tmp_path / "history.npz")
    read = train.History.load(tmp_path / "history.npz")
    same((history.loss, history.observed), (read.loss, read.observed))
    assert (read.stopped, read.detail, read.loss.dtype) == ("diverged", "at step 3", np.float32)
    assert [path.name for path in tmp_path.iterdir()] == ["history.npz"]
    assert "3 steps, diverged (at step 3)" in repr(read) and "a/b  1 -> 0.5" in repr(read)
    ax = read.plot()
    assert ax.get_xlabel() == "step" and ax.get_title() == "diverged"
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [3, 2, 1])
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"loss", "a/b"}
    assert jax.tree.map(lambda leaf: leaf, read).detail == "at step 3"
