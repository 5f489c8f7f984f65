"""A Compressive Transformer beside an LSTM, behind a frozen image encoder: the memory as a component.

An image at an episode's first step shows one of four patterns, noise follows, and the last step asks which it was.
Training takes windows of 16 steps, and an episode has three. The LSTM never learns across windows, since no gradient
goes there. The memory keeps what it saw as data, so the last window can learn to attend to it.

    python examples/memory_beside_lstm.py          # 500 windows, half a minute on one core
"""

import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ctrl

BATCH, WINDOW, WINDOWS, CLASSES, SIZE = 64, 16, 3, 4, 8
LSTMState = tuple[Tensor, Tensor]


class Remembering(nn.Module):
    """A frozen encoder, and behind it an LSTM and a memory side by side."""

    def __init__(self) -> None:
        super().__init__()
        convolution = nn.Conv2d(1, 8, kernel_size=4, stride=2)
        self.encoder = nn.Sequential(convolution, nn.ReLU(), nn.Flatten()).requires_grad_(False)
        self.lstm = nn.LSTM(72, 32, batch_first=True)
        self.memory = ctrl.make_core("compressive", 72, width=32, memory=[ctrl.Tier(16), ctrl.Tier(8, rate=4)])
        self.head = nn.Linear(32 + self.memory.output_size, CLASSES)

    def forward(
        self, images: Tensor, state: tuple[LSTMState, ctrl.State], reset: Tensor
    ) -> tuple[Tensor, ctrl.Unrolled, LSTMState]:
        """Return class scores [B, T, C], the unroll of the memory, and the LSTM's state after the window.

        :param images: [B, T, 1, 8, 8]
        :param state: of the LSTM and of the memory
        :param reset: [B, T] true where an episode begins; here only at a window's first step
        """
        (hidden, cell), memory = state
        features = self.encoder(images.flatten(0, 1)).unflatten(0, reset.shape)  # [B, T, 72]
        kept = ~reset[None, :, :1]
        outputs, (hidden, cell) = self.lstm(features, (hidden * kept, cell * kept))  # torch's LSTM knows no resets
        unrolled = self.memory.unroll(features, memory, reset)  # the memory does
        scores = self.head(torch.cat([outputs, unrolled.outputs], dim=2))
        return scores, unrolled, (hidden.detach(), cell.detach())


def windows(count: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield windows: images [B, T, 1, 8, 8], reset [B, T], and the asked classes [B], -1 where nothing is asked."""
    patterns = torch.randn(CLASSES, 1, SIZE, SIZE)
    part, asked = torch.arange(BATCH) % WINDOWS, torch.randint(CLASSES, (BATCH,))  # episodes begin in different windows
    for _ in range(count):
        images, reset = 0.2 * torch.randn(BATCH, WINDOW, 1, SIZE, SIZE), torch.zeros(BATCH, WINDOW, dtype=torch.bool)
        asked = torch.where(part == 0, torch.randint(CLASSES, (BATCH,)), asked)
        reset[:, 0] = part == 0
        images[:, 0] = torch.where(reset[:, 0].view(-1, 1, 1, 1), patterns[asked], images[:, 0])
        images[:, -1] += 2.0 * (part == WINDOWS - 1).view(-1, 1, 1, 1)  # bright: the question
        yield images, reset, torch.where(part == WINDOWS - 1, asked, -1)
        part = (part + 1) % WINDOWS


def train(count: int = 500, seed: int = 1) -> float:
    """Train on some windows, and return the share of right answers in the last tenth of them."""
    torch.manual_seed(seed)
    model = Remembering()
    compression = model.memory.compression_parameters()
    rest = [
        weight for weight in model.parameters() if weight.requires_grad and all(weight is not w for w in compression)
    ]
    optimizers = [torch.optim.Adam(rest, lr=3e-3), torch.optim.Adam(compression, lr=5e-3)]
    zeros = torch.zeros(1, BATCH, 32)
    recurrent, memory, right = (zeros, zeros), model.memory.initial_state(BATCH), []
    for images, reset, asked in windows(count):
        scores, unrolled, recurrent = model(images, (recurrent, memory), reset)
        memory = unrolled.state
        loss = F.cross_entropy(scores[:, -1], asked, ignore_index=-1)
        (loss + unrolled.reconstruction_loss).backward()
        for optimizer, group, limit in zip(optimizers, (rest, compression), (0.5, 0.1), strict=True):
            nn.utils.clip_grad_norm_(group, limit)
            optimizer.step()
            optimizer.zero_grad()
        model.memory.adapt({name: float(value) for name, value in unrolled.diagnostics.items()})
        right.append(float((scores[:, -1].argmax(1) == asked)[asked >= 0].float().mean()))
    return sum(right[-count // 10 :]) / len(right[-count // 10 :])


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"right answers {train(*map(int, sys.argv[1:])):.2f}; by guessing {1 / CLASSES:.2f}")
