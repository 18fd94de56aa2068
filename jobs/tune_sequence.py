"""tune_sequence: searches settings of the GRU or the Transformer within a budget, on a select fold's validation users.

./spark-submit.sh jobs/tune_sequence.py --set tuning.model=gru --set tuning.trials=30 --set tuning.minutes=60
./spark-submit.sh jobs/pipeline.py --until export_sequences --set folds.num_select=1        (before it, where nothing is exported)
horovodrun -np 2 python jobs/tune_sequence.py --set sequence.launcher=horovodrun            (GPU hosts, no Spark)

The settings that an export holds (sequence.length, max_windows, objective, ...) are not searched. A search that was killed goes on
with the same command; what it finds is printed as --set, and changes nothing by itself.
"""

from xrec.runs.training import tune

if __name__ == "__main__":
    tune()
