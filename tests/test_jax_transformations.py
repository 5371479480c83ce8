"""dynk_jax under control flow, in threads, on several devices and from the cache of compiled programs."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jax_cases import CHANNEL, SPATIAL, X, arrays

import dynk

jax = pytest.importorskip("jax", reason="JAX is not installed")
import dynk_jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402


def test_control_flow_and_checkpoint() -> None:
    x, spatial, channel = map(jnp.asarray, arrays(X, SPATIAL, CHANNEL))

    def step(x: Any, _: Any = None) -> tuple[Any, None]:
        return dynk_jax.ddf(x, spatial, channel), None

    twice = step(step(x)[0])[0]
    np.testing.assert_array_equal(jax.lax.scan(step, x, None, length=2)[0], twice)
    stacked = jnp.stack([x, -x])
    np.testing.assert_array_equal(jax.lax.map(lambda x: step(x)[0], stacked), jnp.stack([step(x)[0], step(-x)[0]]))
    plain = jax.grad(lambda x: (step(x)[0] ** 2).sum())
    remembered = jax.grad(jax.checkpoint(lambda x: (step(x)[0] ** 2).sum()))
    np.testing.assert_array_equal(remembered(x), plain(x))
    assert jax.eval_shape(dynk_jax.ddf, x, spatial, channel) == jax.ShapeDtypeStruct(X, jnp.float32)
    expected = np.asarray(step(x)[0])
    donating = jax.jit(lambda x: step(x)[0], donate_argnums=0)
    np.testing.assert_array_equal(donating(jnp.array(x)), expected)


def test_threads() -> None:
    def run(seed: int) -> tuple[Any, Any]:
        x, channel = arrays((2, 4, 4 + seed % 3, 5), CHANNEL, seed=seed)
        compiled = jax.jit(lambda *a: dynk_jax.ddf(a[0], None, a[1]))
        outs = [np.asarray(compiled(x, channel)) for _ in range(20)]
        return outs, dynk.ddf(x, None, channel)

    with ThreadPoolExecutor(4) as pool:
        for outs, expected in pool.map(run, range(8)):
            for out in outs:
                np.testing.assert_array_equal(out, expected)


def in_process(script: str, **environment: str) -> str:
    """Run a script in a new interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_shard_map_over_several_devices() -> None:
    in_process(
        """
        import jax, numpy as np, dynk, dynk_jax
        from jax.sharding import NamedSharding, PartitionSpec as P

        rng = np.random.default_rng(0)
        draw = lambda *shape: rng.standard_normal(shape).astype("float32")
        x, spatial, channel = draw(8, 4, 4, 5), draw(8, 2, 3, 3, 4, 5), draw(2, 4, 3, 3)
        repeated = np.tile(channel, (4, 1, 1, 1))
        out = dynk.ddf(x, spatial, repeated)
        expected = dynk.ddf_backward(2 * out, x, spatial, repeated)
        mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)

        for check in (True, False):
            # the channel filters are the same on every device, so their gradient is a sum over devices
            specs = P("d"), P("d"), P()
            f = jax.jit(jax.shard_map(dynk_jax.ddf, mesh=mesh, in_specs=specs, out_specs=P("d"), check_vma=check))
            np.testing.assert_array_equal(f(x, spatial, channel), out)
            gradients = jax.jit(jax.grad(lambda *a: (f(*a) ** 2).sum(), (0, 1, 2)))(x, spatial, channel)
            close(gradients[0], expected.x)
            close(gradients[1], expected.spatial)
            close(gradients[2], expected.channel.reshape(4, 2, 4, 3, 3).sum(0))
        inner = jax.grad(lambda channel, x, spatial: (dynk_jax.ddf(x, spatial, channel) ** 2).sum())
        specs = P(), P("d"), P("d")
        inner = jax.jit(jax.shard_map(inner, mesh=mesh, in_specs=specs, out_specs=P()))
        close(inner(channel, x, spatial), gradients[2])
        sharded = jax.device_put(x, NamedSharding(mesh, P("d")))
        np.testing.assert_array_equal(jax.jit(dynk_jax.ddf)(sharded, spatial, repeated), out)
        """,
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
    )


def test_persistent_compilation_cache(tmp_path: Path) -> None:
    script = """
        import jax, numpy as np, dynk, dynk_jax
        hits = []
        jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if "cache_hits" in event else None)
        x, channel = np.ones((1, 2, 4, 4), "float32"), np.ones((1, 2, 3, 3), "float32")
        loss = lambda x: (dynk_jax.ddf(x, None, channel) ** 2).sum()
        gradient = jax.jit(jax.grad(loss))(x)
        expected = dynk.ddf_backward(2 * dynk.ddf(x, None, channel), x, None, channel).x
        np.testing.assert_array_equal(gradient, expected)
        print(len(hits) > 0)
        """
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    assert [in_process(script, **environment).strip() for _ in range(2)] == ["False", "True"]
