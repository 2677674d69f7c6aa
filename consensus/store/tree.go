package store

import "github.com/tidwall/btree"

// treeDegree makes nodes of 15 to 31 keys: wide enough that a key costs about 40
// bytes of tree, narrow enough that the path a write copies stays below 4 KB.
const treeDegree = 16

// tree is an ordered map whose copies share their nodes: a write copies the path to
// its key unless that was copied since the last freeze.
type tree struct{ *btree.Map[string, *KV] }

func newTree() tree { return tree{btree.NewMap[string, *KV](treeDegree)} }

// freeze returns a copy that further writes do not change. Only the goroutine that
// writes may call it.
func (t tree) freeze() tree { return tree{t.Copy()} }

// fork returns a copy for writing. Unlike freeze it leaves no mark in t, which many
// goroutines may be reading and forking.
func (t tree) fork() tree {
	aside := *t.Map
	return tree{aside.Copy()}
}

// rank is the number of keys below the given one.
func (t tree) rank(key string) int {
	low, high := 0, t.Len()
	for low < high {
		middle := int(uint(low+high) / 2)
		if at, _, _ := t.GetAt(middle); at < key {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low
}
