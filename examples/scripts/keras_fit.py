"""An ordinary Keras script, made elastic: four lines are new or not what they were with ``model.fit``.

    hvtrain run examples/scripts/keras_fit.py -np 2      two workers; kill one, and it is replaced
    python examples/scripts/keras_fit.py                 alone, as before
"""

import keras
from keras import layers

import hvtrain.keras  # new
from hvtrain.data import builtin

images, labels = builtin.digits()
x_train, y_train, x_test, y_test = images[:1400], labels[:1400], images[1400:], labels[1400:]

model = keras.Sequential([
    layers.Input((8, 8)), layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dropout(0.2), layers.Dense(10)])
model.compile(optimizer=keras.optimizers.Adam(3e-3), metrics=["accuracy"],
              loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))

history = hvtrain.keras.fit(  # was: model.fit(x_train, y_train,
    model, x=x_train, y=y_train,
    validation_data=(x_test, y_test), batch_size=64, epochs=8,
    callbacks=[keras.callbacks.ReduceLROnPlateau(patience=2, factor=0.5),
               keras.callbacks.EarlyStopping(monitor="val_accuracy", patience=4)])

loss, accuracy = model.evaluate(x_test, y_test, verbose=0)
print(f"after {len(history.epoch)} epochs: loss {loss:.4f}, accuracy {accuracy:.4f}")
if hvtrain.is_first():  # new: every worker gets here, one of them writes the file
    model.save("digits.keras")
