"""The data sets that come with ellzero or are found, or downloaded, by it."""

DATA_SETS = {
    "mnist-5k": "ellzero.data.mnist_5k:mnist_5k",
    "mnist": "ellzero.data.mnist:mnist",
    "fashion-mnist": "ellzero.data.mnist:fashion_mnist",
    "cifar-10": "ellzero.data.cifar:cifar_10",
    "cifar-100": "ellzero.data.cifar:cifar_100",
    "cifar-10-jpeg": "ellzero.data.cifar_jpeg:cifar_10_jpeg",
    "image-folder": "ellzero.data.image_folder:image_folder",
    "spoken-digits": "ellzero.data.spoken_digits:spoken_digits",
    "shakespeare": "ellzero.data.shakespeare:shakespeare",
    "csv": "ellzero.data.csv_table:csv",
    "npz": "ellzero.data.npz:npz",
}
"""Built-in name -> `package.module:function` that loads the data; imported only when used."""
