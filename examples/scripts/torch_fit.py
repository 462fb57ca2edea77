"""An ordinary PyTorch script, made elastic: one call stands where its training loop was.

    hvtrain run examples/scripts/torch_fit.py -np 2      two workers; kill one, and it is replaced
    python examples/scripts/torch_fit.py                 alone
"""

import torch
from torch import nn
from torch.utils.data import TensorDataset

import hvtrain.torch  # new
from hvtrain.data import builtin

images, labels = map(torch.from_numpy, builtin.digits())
train, test = TensorDataset(images[:1400], labels[:1400]), TensorDataset(images[1400:], labels[1400:])

model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))
loss = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

# was: for epoch in range(8):
#          for images, labels in DataLoader(train, batch_size=64, shuffle=True):
#              optimizer.zero_grad()
#              loss(model(images), labels).backward()
#              optimizer.step()
hvtrain.torch.fit(model, dataset=train, loss=loss, optimizer=optimizer, batch_size=64, epochs=8, validation=test)

model.eval()
with torch.no_grad():
    right = (model(test.tensors[0]).argmax(1) == test.tensors[1]).float().mean()
print(f"accuracy {right:.4f}")
if hvtrain.is_first():  # new: every worker gets here, one of them writes the file
    torch.save(model.state_dict(), "digits.pt")
