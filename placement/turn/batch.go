package turn

import "shoal/placement"

// BatchSize bounds the plans about single pods that are one transaction. Each alone would cost an entry of the log and its turn in the
// queue for the disk; all of them in one would make the others wait, and be taken anew for one pod that has changed.
const BatchSize = 64

// Batches splits work, in its order, into what is to commit together. Only plans about waiting pods share a transaction.
func Batches(work []Piece) [][]Piece {
	var batches [][]Piece
	for first := 0; first < len(work); {
		end := first + 1
		for end < len(work) && end-first < BatchSize && work[first].Ref.Kind == placement.KindPod && work[end].Ref.Kind == placement.KindPod {
			end++
		}
		batches = append(batches, work[first:end:end])
		first = end
	}
	return batches
}
