"""Who sees what, who is refused, and that nothing is left behind."""

import copy
import pickle
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from multihead.errors import ObservationError, UnsupportedAttentionError
from multihead.lens import observe
from tests.lens.hosts import Block, in_thread, nothing_patched, observed, same, same_state, stack, state_of


def doubled(x):
    """A forward that somebody put in the place of a module's own."""
    return 2 * x


class Slim(Block):
    """A module that says itself what there is to copy."""

    def __getstate__(self):
        return {**vars(self), "slim": True}


class Careful(Block):
    """A module that copies itself by copying its attributes."""

    def __deepcopy__(self, memo):
        twin = memo[id(self)] = type(self).__new__(type(self))
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin


def attributes_of(model):
    """The names of what is set on each module itself."""
    return [sorted(vars(module)) for module in model.modules()]


def copied_models():
    """Models of one layer whose copies differ in how they come about."""
    changed = nn.Sequential(Block(), nn.Sequential(nn.Identity())).eval()
    changed[1].forward = doubled
    return {
        "stack": stack(1),
        "torch": nn.TransformerEncoderLayer(14, 2, 13, batch_first=True).eval(),
        "changed": changed,
        "own state": nn.Sequential(Slim()).eval(),
    }


@pytest.fixture
def x():
    return torch.randn(2, 11, 14, generator=torch.Generator().manual_seed(0))


class TestOthers:
    def test_the_same_model_twice(self, x):
        model = stack(2)
        with observe(model) as seen:
            with pytest.raises(
                ObservationError, match=r"Sequential cannot be observed: it is being observed already. Leave"
            ):
                observe(model).__enter__()
            with pytest.raises(ObservationError, match="Block cannot be observed: it is being observed already"):
                observe(model[1]).__enter__()
            with pytest.raises(ObservationError, match="already"):
                in_thread(lambda: observe(model).__enter__())
            model(x)
        assert seen.check().passed
        with observe(model[0]), pytest.raises(ObservationError, match="its part '0' is being observed already"):
            observe(model).__enter__()
        assert nothing_patched()
        observed(model, x)

    def test_different_models_nested(self, x):
        first, second = stack(2), stack(3)
        with observe(first) as one, observe(second) as other:
            first(x)
            second(x)
        assert (len(one.layers), len(other.layers)) == (2, 3)
        assert (len(one.runs), len(other.runs)) == (1, 1)
        assert nothing_patched()

    @pytest.mark.parametrize("order", [0, 1])
    def test_a_model_that_calls_another(self, x, order):
        class Outer(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.before, self.after = Block(), Block()
                self.hidden = [inner]

            def forward(self, x):
                return self.after(self.hidden[0](self.before(x)))

        inner = nn.TransformerEncoder(nn.TransformerEncoderLayer(14, 2, 13, batch_first=True), 2).eval()
        outer = Outer(inner).eval()
        with torch.no_grad():
            plain = outer(x)
            models = [outer, inner]
            with observe(models[order]) as first, observe(models[1 - order]) as second:
                during = outer(x)
        outside, inside = (first, second) if order == 0 else (second, first)
        assert torch.equal(plain, during)
        assert [layer.name for layer in outside.layers] == ["before", "after"]
        assert [layer.name for layer in inside.layers] == ["layers.0.self_attn", "layers.1.self_attn"]
        assert outside.check().passed
        assert inside.check().passed
        assert nothing_patched()

    def test_attention_of_parts_that_are_no_submodules_counts_as_the_callers(self, x):
        class Outer(nn.Module):
            def __init__(self):
                super().__init__()
                self.hidden = [Block().eval()]

            def forward(self, x):
                return self.hidden[0](x)

        assert [layer.name for layer in observed(Outer(), x).layers] == [""]

    def test_threads_see_their_own(self, x):
        models = [stack(layers) for layers in (1, 2, 3, 5)]
        plain = [model(x) for model in models]
        barrier = threading.Barrier(len(models))
        found = [None] * len(models)

        def run(place):
            barrier.wait()
            for _ in range(5):
                with observe(models[place]) as seen:
                    barrier.wait()
                    output = models[place](x)
                    barrier.wait()
                assert torch.equal(output, plain[place])
                assert seen.check().passed
            found[place] = seen

        threads = [threading.Thread(target=run, args=(place,)) for place in range(len(models))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [len(seen.layers) for seen in found] == [1, 2, 3, 5]
        assert nothing_patched()

    def test_another_thread_may_use_the_observed_model(self, x):
        model = stack(2)
        plain = model(x)
        with observe(model) as seen:
            assert torch.equal(in_thread(lambda: model(x)), plain)
            model(x[:, :3])
        assert [layer.sizes.keys for layer in seen.layers] == [3, 3]
        assert len(seen.runs) == 1


class TestNothingIsLeft:
    def test_after_an_error_inside_the_model(self, x):
        model = stack(2)
        state = state_of(model)

        class BrokenError(Exception):
            pass

        def broken(*_):
            raise BrokenError

        handle = model[1].register_forward_hook(broken)
        with pytest.raises(BrokenError), observe(model):
            model(x)
        handle.remove()
        assert same_state(state, state_of(model))
        assert nothing_patched()

    def test_after_an_error_inside_the_block(self):
        with pytest.raises(KeyError), observe(stack(1)):
            raise KeyError
        assert nothing_patched()

    def test_a_forward_set_on_the_instance_comes_back(self, x):
        model = stack(2)
        plain = model[1].forward
        model[1].forward = lambda x: plain(x) * 2
        before = model[1].forward
        seen = observed(model, x)
        assert model[1].forward is before
        assert len(seen.layers) == 2

    def test_a_forward_set_meanwhile_stays_and_sees_nothing_later(self, x):
        model = stack(1)
        with observe(model) as seen:
            inner = model[0].forward
            model[0].forward = lambda x: inner(x) + 1
            model(x)
        changed = model(x)
        assert len(seen.runs) == 1
        del model[0].forward
        assert torch.allclose(changed, model(x) + 1)
        assert nothing_patched()

    def test_a_copy_made_meanwhile_is_its_own(self, x):
        model = stack(2)
        with observe(model) as seen:
            twin = copy.deepcopy(model)
            with torch.no_grad():
                twin[0].out.weight.zero_()
            different = twin(x)
        assert seen.runs == ()
        assert not torch.equal(different, model(x))
        assert torch.equal(different, twin(x))

    @pytest.mark.parametrize("make", ["stack", "torch", "changed", "own state"])
    @pytest.mark.parametrize("way", [copy.deepcopy, copy.copy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_a_copy_is_that_of_an_unobserved_model(self, x, make, way):
        model = copied_models()[make]
        state, expected = state_of(model), attributes_of(way(model))
        with torch.no_grad():
            plain = model(x)
            with observe(model) as seen:
                twin = way(model)
                if way is not copy.copy:
                    assert same(twin(x), plain)
            assert seen.runs == ()
        assert same_state(state, state_of(model))
        assert type(twin) is type(model)
        assert attributes_of(twin) == expected
        assert len(observed(twin, x).layers) == 1
        assert nothing_patched()

    def test_a_module_that_copies_its_attributes_itself(self, x):
        model = Careful().eval()
        with observe(model) as seen:
            twin = copy.deepcopy(model)
            with torch.no_grad():
                twin.out.weight.zero_()
            different = twin(x)
        assert seen.runs == ()
        assert not torch.equal(different, model(x))
        again = copy.deepcopy(twin)
        assert torch.equal(again(x), different)
        assert torch.equal(pickle.loads(pickle.dumps(twin))(x), different)
        assert torch.equal(twin.__getstate__()["_modules"]["out"].weight, torch.zeros(14, 14))

    def test_a_graph_is_copied_clean(self):
        model, x = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 3))), torch.zeros(2, 3)
        with observe(model):
            twin = copy.deepcopy(model)
        assert attributes_of(twin) == attributes_of(copy.deepcopy(model))
        assert torch.equal(twin(x), model(x))

    def test_a_state_set_meanwhile_stays(self):
        model = stack(1)
        with observe(model):
            model.__getstate__ = dict
        assert vars(model).pop("__getstate__") is dict
        with observe(model[0]):
            state = model[0].__getstate__()
            assert not {"forward", "__getstate__"} & state.keys()
        assert nothing_patched()

    def test_hooks_and_signatures_work_meanwhile(self, x):
        import inspect

        model, calls = stack(1), []
        handle = model[0].register_forward_hook(lambda *_: calls.append(1))
        with observe(model):
            model(x)
            assert list(inspect.signature(model[0].forward).parameters) == ["x"]
        handle.remove()
        assert calls == [1]


class TestRefused:
    def test_compiled(self):
        model = stack(1)
        compiled = torch.compile(model, backend="eager")
        with pytest.raises(ObservationError, match=r"it is compiled. Observe the original module, model._orig_mod"):
            observe(compiled).__enter__()
        outer = nn.Sequential(compiled)
        with pytest.raises(ObservationError, match=r"its part '0' is compiled. Observe .* model.0._orig_mod"):
            observe(outer).__enter__()
        model.compile(backend="eager")
        with pytest.raises(ObservationError, match=r"compiled in place by .compile\(\)"):
            observe(model).__enter__()

    def test_scripted(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            scripted = torch.jit.script(nn.Linear(2, 2))
        with pytest.raises(ObservationError, match=r"its part '0' is TorchScript.*original module"):
            observe(nn.Sequential(scripted)).__enter__()

    def test_meta(self):
        with torch.device("meta"):
            model = stack(1)
        with pytest.raises(ObservationError, match=r"its part '0.qkv' is on the meta device.*Load its weights first"):
            observe(model).__enter__()

    def test_data_parallel(self):
        with pytest.raises(
            ObservationError, match=r"it is replicated by DataParallel. Observe the original module, .module"
        ):
            observe(nn.DataParallel(stack(1))).__enter__()

    def test_flex_attention(self):
        from torch.nn.attention.flex_attention import flex_attention

        class Flexible(nn.Module):
            def forward(self, q):
                return flex_attention(q, q, q)

        model, q = Flexible(), torch.randn(1, 2, 16, 8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = model(q)
            with observe(model) as seen:
                assert same(model(q), plain)
        assert seen.check().passed
        assert nothing_patched()

    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    def test_a_compiled_function_inside(self, backend):
        """What a compiled function calls is seen where it still is the attention function, and refused where not."""

        @torch.compile(backend=backend)
        def inner(q):
            return F.scaled_dot_product_attention(q, q, q)

        class Outer(nn.Module):
            def forward(self, q):
                return inner(q)

        model, q = Outer(), torch.randn(1, 2, 16, 8)
        plain = model(q)
        if backend == "eager":
            with observe(model) as seen:
                assert same(model(q), plain)
            assert seen.check().passed
        else:
            with pytest.raises(UnsupportedAttentionError, match=r"it calls aten._scaled_dot_product"), observe(model):
                model(q)
        with warnings.catch_warnings(), observe(model, unsupported="skip"):
            warnings.simplefilter("ignore")
            assert same(model(q), plain)
        assert nothing_patched()
