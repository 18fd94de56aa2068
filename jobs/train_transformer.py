"""train_transformer: trains the Transformer on all folds with Horovod, and encodes users and items.

./spark-submit.sh jobs/train_transformer.py --set sequence.epochs=8
horovodrun -np 2 python jobs/train_transformer.py --set sequence.launcher=horovodrun     (GPU hosts, no Spark)
./spark-submit.sh jobs/train_transformer.py --changed-since latest     trains nothing: encodes who changed since the training
"""

from xrec.runs.training import main

if __name__ == "__main__":
    main("transformer")
