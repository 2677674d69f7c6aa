package consensus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// Not every fault of dragonboat's goes through its logger: some are plain panics, which nobody can hold up, and the Go runtime ends the
// process. It writes its trace into crash.log too, behind the addresses of dragonboat's objects for the replicas of this process, so that
// the next process can tell whose fault it was and counts it like any other.
const crashFile = "crash.log"

// crashLog is the file of this process. It exists on the host's disk only.
type crashLog struct {
	file *os.File
}

// openCrashLog reads what the process before left, and begins a new file. crashed is nil if it did not crash, or not here.
func openCrashLog(dir string) (log *crashLog, crashed *Fault, err error) {
	path := filepath.Join(dir, crashFile)
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("the last crash: %w", err)
	}
	if info, err := os.Stat(path); err == nil {
		crashed = readCrash(string(text), info.ModTime())
	}
	if crashed != nil {
		// The trace stays for whoever wants to report it.
		if err := os.Rename(path, path+".last"); err != nil {
			return nil, nil, fmt.Errorf("the last crash: %w", err)
		}
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("the next crash: %w", err)
	}
	if err := debug.SetCrashOutput(file, debug.CrashOptions{}); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("the next crash: %w", err), file.Close())
	}
	return &crashLog{file}, crashed, nil
}

// takeCrash writes down what ended the process before, if that was a replica's fault.
func takeCrash(cfg Config, d *disk) (*crashLog, error) {
	if cfg.FS != nil {
		return nil, nil
	}
	log, crashed, err := openCrashLog(cfg.Dir)
	if err != nil || crashed == nil {
		return log, err
	}
	cfg.Logger.Error("the last process of this peer crashed", "err", crashed.Error(), "trace", filepath.Join(cfg.Dir, crashFile+".last"))
	return log, d.note(*crashed)
}

// starting writes down that a replica is being started, until its objects are known.
func (c *crashLog) starting(key replicaKey) error {
	if c == nil {
		return nil
	}
	_, err := fmt.Fprintf(c.file, "starting %d %d\n", key.shard, key.replica)
	return err
}

// started writes down where the objects for a replica lie.
func (c *crashLog) started(addresses []uintptr, key replicaKey) error {
	if c == nil {
		return nil
	}
	text := ""
	for _, address := range addresses {
		text += fmt.Sprintf("replica %#x %d %d\n", address, key.shard, key.replica)
	}
	_, err := c.file.WriteString(text)
	return err
}

// close ends the file without a crash. The runtime holds a copy of its own.
func (c *crashLog) close() error {
	if c == nil {
		return nil
	}
	return errors.Join(c.file.Truncate(0), c.file.Close())
}

var (
	knownReplica    = regexp.MustCompile(`(?m)^replica (0x[0-9a-f]+) (\d+) (\d+)$`)
	startingReplica = regexp.MustCompile(`(?m)^starting (\d+) (\d+)$`)
)

func keyOf(shard, replica string) (key replicaKey) {
	key.shard, _ = strconv.ParseUint(shard, 10, 64)     //nolint:errcheck // digits
	key.replica, _ = strconv.ParseUint(replica, 10, 64) //nolint:errcheck // digits
	return key
}

// readCrash finds the replica whose goroutine panicked: the runtime prints that one first. A crash that has nothing to do with a replica
// is none of ours.
func readCrash(text string, at time.Time) *Fault {
	begin := strings.Index(text, "panic: ")
	if begin < 0 {
		return nil
	}
	known := map[string]replicaKey{}
	for _, m := range knownReplica.FindAllStringSubmatch(text[:begin], -1) {
		known[m[1]] = keyOf(m[2], m[3]) // the last one that lay there
	}
	what, rest, _ := strings.Cut(text[begin:], "\n")
	_, stack, _ := strings.Cut(rest, "goroutine ")
	stack, _, _ = strings.Cut(stack, "\n\n")
	for _, found := range receivers.FindAllStringSubmatch(stack, -1) {
		if key, ok := known["0x"+found[1]]; ok {
			return &Fault{At: at, Shard: key.shard, Replica: key.replica, Kind: FaultRaft, What: what}
		}
	}
	// One whose start did not come to its end, if dragonboat was at work.
	last := startingReplica.FindAllStringSubmatch(text[:begin], -1)
	if len(last) == 0 || !strings.Contains(stack, "dragonboat/v4") {
		return nil
	}
	key := keyOf(last[len(last)-1][1], last[len(last)-1][2])
	for _, started := range known {
		if started == key {
			return nil
		}
	}
	return &Fault{At: at, Shard: key.shard, Replica: key.replica, Kind: FaultRaft, What: what}
}
