package model

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Fault is something that is done to the cluster at a time.
type Fault struct {
	At   time.Duration
	Kind FaultKind
	// Target is whom it befalls, when the time has come: a node's name, several with commas between them, "zone a" for the nodes of a zone,
	// "shard 2" for the voters of a shard, "leader 2" for its leader, "all", or "quorum": see Model.quorum. Shard 0 is the meta shard. Join, Overload and Calm have none.
	Target string
	// Other is the other side of Block and Part, in the same words.
	Other string
	Count int           // of nodes or of clients, see FaultForm
	By    time.Duration // a duration, see FaultForm
	Rate  float64       // see FaultForm
	// For ends it so much later, by the kind that ends it; 0 leaves that to another Fault.
	For time.Duration
}

// FaultKind says what is done.
type FaultKind string

// The kinds of faults.
const (
	Crash   FaultKind = "crash"
	Kill    FaultKind = "kill"
	Restart FaultKind = "restart"
	Wipe    FaultKind = "wipe"
	Freeze  FaultKind = "freeze"
	Thaw    FaultKind = "thaw"

	Slow     FaultKind = "slow"
	SlowDisk FaultKind = "slow-disk"
	FullDisk FaultKind = "full-disk"
	Mend     FaultKind = "mend"

	Cut       FaultKind = "cut"
	Part      FaultKind = "part"
	Block     FaultKind = "block"
	Deaf      FaultKind = "deaf"
	Mute      FaultKind = "mute"
	Flap      FaultKind = "flap"
	Lose      FaultKind = "lose"
	Delay     FaultKind = "delay"
	Duplicate FaultKind = "duplicate"
	Reorder   FaultKind = "reorder"
	Heal      FaultKind = "heal"

	Jump     FaultKind = "jump"
	Drift    FaultKind = "drift"
	SetClock FaultKind = "set-clock"

	Join     FaultKind = "join"
	Leave    FaultKind = "leave"
	Drain    FaultKind = "drain"
	Uncordon FaultKind = "uncordon"
	Handover FaultKind = "handover"
	Recover  FaultKind = "recover"
	Upgrade  FaultKind = "upgrade"
	Overload FaultKind = "overload"
	Calm     FaultKind = "calm"
	Core     FaultKind = "core"
)

// FaultForm says which fields of a Fault a kind reads, so that others can write faults down and read them.
type FaultForm struct {
	Kind FaultKind
	// Target and Other tell that these fields name nodes.
	Target, Other bool
	// Count, By and Rate are what the fields mean; "" if the kind does not read them.
	Count, By, Rate string
	// Ends is the kind that ends this one, "" if it does not last.
	Ends FaultKind
	// Meaning is one sentence for people.
	Meaning string
}

// FaultForms are all kinds, in the order in which people should read of them.
var FaultForms = []FaultForm{
	{Kind: Crash, Target: true, Ends: Restart, Meaning: "the machine loses its power: peer and containers are gone, its disk keeps what was synced"},
	{Kind: Kill, Target: true, Ends: Restart, Meaning: "the peer's process dies, containers and watchdog run on"},
	{Kind: Restart, Target: true, Meaning: "the peer starts again with its disk"},
	{Kind: Wipe, Target: true, Meaning: "the machine is down and comes back under its name with an empty disk"},
	{Kind: Freeze, Target: true, Ends: Thaw, Meaning: "the peer's process stands still, containers and watchdog run on"},
	{Kind: Thaw, Target: true, Meaning: "it goes on where it stood"},

	{Kind: Slow, Target: true, Rate: "times as slow", Ends: Mend, Meaning: "whatever the peer does takes so many times as long"},
	{Kind: SlowDisk, Target: true, By: "longer for each sync", Ends: Mend, Meaning: "every sync of the disk takes so much longer"},
	{Kind: FullDisk, Target: true, Ends: Mend, Meaning: "the disk takes nothing any more: no entry of a log, no new container"},
	{Kind: Mend, Target: true, Meaning: "machine and disk are as they should be"},

	{Kind: Cut, Target: true, Ends: Heal, Meaning: "the targets hear each other, and nobody else; nobody else hears them"},
	{Kind: Part, Target: true, Other: true, Ends: Heal, Meaning: "the two sides do not hear each other, everybody else hears both"},
	{Kind: Block, Target: true, Other: true, Ends: Heal, Meaning: "nothing that the first side sends arrives at the other, the way back is open"},
	{Kind: Deaf, Target: true, Ends: Heal, Meaning: "nothing arrives at the targets, what they send does"},
	{Kind: Mute, Target: true, Ends: Heal, Meaning: "nothing that the targets send arrives, they hear everybody"},
	{Kind: Flap, Target: true, By: "for each half of a turn", Ends: Heal, Meaning: "cut and healed by turns"},
	{Kind: Lose, Target: true, Rate: "of all messages, 0 to 1", Ends: Heal, Meaning: "so many of the messages to and from the targets are lost"},
	{Kind: Delay, Target: true, By: "longer for each message", Ends: Heal, Meaning: "messages to and from the targets take so much longer"},
	{Kind: Duplicate, Target: true, Rate: "of all messages, 0 to 1", Ends: Heal, Meaning: "so many of the messages to and from the targets arrive twice"},
	{Kind: Reorder, Target: true, By: "at most, drawn for each message", Ends: Heal, Meaning: "messages to and from the targets overtake each other"},
	{Kind: Heal, Target: true, Meaning: "the network to and from the targets is as it should be"},

	{Kind: Jump, Target: true, By: "forward, or back if negative", Ends: SetClock, Meaning: "the wall clock is set wrong by so much"},
	{Kind: Drift, Target: true, Rate: "seconds gained in each second, -0.5 to 1", Ends: SetClock, Meaning: "the wall clock runs too fast, or too slow"},
	{Kind: SetClock, Target: true, Meaning: "the wall clock is right again, and runs right"},

	{Kind: Join, Count: "nodes", Meaning: "new machines join"},
	{Kind: Leave, Target: true, Meaning: "the peers leave in order: replicas, leaderships and pods go elsewhere first"},
	{Kind: Drain, Target: true, Ends: Uncordon, Meaning: "the nodes take no more pods, and theirs are moved away as kubectl drain does"},
	{Kind: Uncordon, Target: true, Meaning: "the nodes take pods again"},
	{Kind: Handover, Target: true, Meaning: "the targets hand over what they lead to other voters"},
	{Kind: Recover, Target: true, Meaning: "shards that have lost most of their voters go on from a copy on the targets, as peer recover does"},
	{Kind: Upgrade, Target: true, By: "down for each", Meaning: "the peers are restarted with another version, one after the other, each when the one before is back"},
	{Kind: Overload, Count: "clients", By: "between two writes of a client", Ends: Calm, Meaning: "so many more clients write to all shards"},
	{Kind: Calm, Meaning: "the clients of an overload go away"},
	{Kind: Core, Target: true, Meaning: "the targets are healed and go on alone: all others stay as they are, out of reach, and no other fault happens any more"},
}

// FormOf is the form of a kind.
func FormOf(kind FaultKind) (FaultForm, bool) {
	i := slices.IndexFunc(FaultForms, func(f FaultForm) bool { return f.Kind == kind })
	if i < 0 {
		return FaultForm{}, false
	}
	return FaultForms[i], true
}

// Check says what is wrong with a fault in a cluster of so many nodes, zones and data shards, nil if nothing is. Nodes that join later
// cannot be named.
func (f Fault) Check(nodes, zones, shards int) error {
	form, known := FormOf(f.Kind)
	switch {
	case !known:
		return fmt.Errorf("%q is nothing that can happen", f.Kind)
	case f.At < 0:
		return fmt.Errorf("%s cannot happen before the start", f.Kind)
	case form.Count != "" && f.Count < 1:
		return fmt.Errorf("%s needs a number of %s", f.Kind, form.Count)
	case f.For < 0 || f.For > 0 && form.Ends == "":
		return fmt.Errorf("%s does not last, so it cannot end after %s", f.Kind, f.For)
	case form.By != "" && f.By == 0 || f.By < 0 && f.Kind != Jump:
		return fmt.Errorf("%s needs a duration: %s", f.Kind, form.By)
	case form.Rate != "" && !validRate(f.Kind, f.Rate):
		return fmt.Errorf("%s needs a number: %s", f.Kind, form.Rate)
	}
	for _, side := range []struct {
		wanted bool
		text   string
	}{{form.Target, f.Target}, {form.Other, f.Other}} {
		if !side.wanted {
			continue
		}
		if err := checkTarget(side.text, nodes, zones, shards); err != nil {
			return fmt.Errorf("%s: %w", f.Kind, err)
		}
	}
	return nil
}

func validRate(kind FaultKind, rate float64) bool {
	switch kind {
	case Slow:
		return rate >= 1 && rate <= 1000
	case Drift:
		return rate >= -0.5 && rate <= 1 && rate != 0
	default:
		return rate > 0 && rate <= 1 && !math.IsNaN(rate)
	}
}

func checkTarget(text string, nodes, zones, shards int) error {
	kind, rest, two := strings.Cut(text, " ")
	switch {
	case text == "all", text == "quorum":
		return nil
	case two && kind == "zone":
		if len(rest) != 1 || rest[0] < 'a' || int(rest[0]-'a') >= min(max(zones, 1), nodes) {
			return fmt.Errorf("there is no zone %q", rest)
		}
		return nil
	case two && (kind == "shard" || kind == "leader"):
		if n, err := strconv.Atoi(rest); err != nil || n < 0 || n > max(shards, 1) {
			return fmt.Errorf("there is no shard %q: they are 0, the meta shard, to %d", rest, max(shards, 1))
		}
		return nil
	}
	for _, name := range strings.Split(text, ",") {
		number, isNode := strings.CutPrefix(name, "n")
		if n, err := strconv.Atoi(number); !isNode || err != nil || n < 1 || n > nodes {
			return fmt.Errorf("there is no node %q: they are n1 to n%d", name, nodes)
		}
	}
	return nil
}
