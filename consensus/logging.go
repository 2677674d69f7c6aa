package consensus

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/logger"
)

// dragonboat's loggers are global to the process: they report to the logger of the
// host that was opened last.
var (
	raftLog     atomic.Pointer[slog.Logger]
	raftLogOnce sync.Once
)

func setRaftLogger(l *slog.Logger) {
	raftLog.Store(l)
	raftLogOnce.Do(func() {
		logger.SetLoggerFactory(func(name string) logger.ILogger { return &raftLogger{name: name} })
	})
}

// raftLogger reports one of dragonboat's packages through slog. Its information is
// debugging to us, and so are its warnings: a lost peer makes dozens a second, and
// what they mean for a shard is in Status and in the errors of requests.
type raftLogger struct{ name string }

func (l *raftLogger) SetLevel(logger.LogLevel) {}

func (l *raftLogger) Debugf(string, ...any) {}

func (l *raftLogger) Infof(format string, args ...any) { l.debug(format, args) }

func (l *raftLogger) Warningf(format string, args ...any) { l.debug(format, args) }

func (l *raftLogger) Errorf(format string, args ...any) { l.debug(format, args) }

// Panicf is where dragonboat finds an invariant broken. In a call of ours it panics,
// which guarded turns into an error. In dragonboat's own goroutines a panic would end
// the process in the middle of everything: there the hosts are told, and the goroutine
// stands still, so that nothing is built on what is broken until the process has ended
// in order.
func (l *raftLogger) Panicf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	stack := string(stackOf())
	if strings.Contains(stack, "shoal/consensus.guarded(") {
		panic(text)
	}
	if !faulty.tell(l.name+": "+text, stack) {
		raftLog.Load().Error("raft invariant broken, the process has to stop", "part", l.name, "what", text)
		panic(text)
	}
	select {}
}

func (l *raftLogger) debug(format string, args []any) {
	if log := raftLog.Load(); log.Enabled(context.Background(), slog.LevelDebug) {
		log.Debug(fmt.Sprintf(format, args...), "part", "raft/"+l.name)
	}
}

func stackOf() []byte {
	b := make([]byte, 16<<10)
	return b[:runtime.Stack(b, false)]
}

// guarded calls into dragonboat where that may panic in our own goroutine, and makes
// an error of it.
func guarded(call func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("raft: %v", r)
		}
	}()
	return call()
}

// faulty finds out which host and which replica a broken invariant belongs to.
var faulty = &attribution{replicas: map[uintptr]owner{}, hosts: map[*Host]bool{}}

type attribution struct {
	mu    sync.Mutex
	hosts map[*Host]bool
	// replicas are known by the addresses of dragonboat's objects for them, which stand
	// in the stack of a goroutine that works for one.
	replicas map[uintptr]owner
}

type owner struct {
	host *Host
	key  replicaKey
}

func (a *attribution) open(h *Host) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hosts[h] = true
}

func (a *attribution) close(h *Host) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.hosts, h)
	for address, o := range a.replicas {
		if o.host == h {
			delete(a.replicas, address)
		}
	}
}

// started remembers a replica's objects.
func (a *attribution) started(h *Host, key replicaKey) {
	user, err := h.nh.GetNodeUser(key.shard)
	if err != nil {
		return
	}
	addresses := objectsOf(user)
	a.mu.Lock()
	defer a.mu.Unlock()
	for address, o := range a.replicas {
		if o.host == h && o.key.shard == key.shard {
			delete(a.replicas, address)
		}
	}
	for _, address := range addresses {
		a.replicas[address] = owner{h, key}
	}
	if err := h.crashes.started(addresses, key); err != nil {
		h.cfg.Logger.Warn("a crash could not be told from others", "shard", key.shard, "err", err)
	}
}

// objectsOf lists the addresses of the objects whose methods work for one replica alone: dragonboat's node, its state machine, its raft
// and the log of that. They are fields of one another; what is not there is left out, and then fewer faults find their replica.
func objectsOf(user dragonboat.INodeUser) (addresses []uintptr) {
	follow := func(v reflect.Value, names ...string) {
		for _, name := range names {
			if v = reflect.Indirect(v); v.Kind() != reflect.Struct {
				return
			}
			if v = v.FieldByName(name); !v.IsValid() || v.Kind() != reflect.Pointer || v.IsNil() {
				return
			}
			addresses = append(addresses, v.Pointer())
		}
	}
	follow(reflect.ValueOf(user), "node", "sm")
	follow(reflect.ValueOf(user), "node", "p", "raft", "log")
	return addresses
}

var (
	// receivers are dragonboat's objects in a stack: "(*node).stepNode(0xc000…".
	receivers = regexp.MustCompile(`dragonboat/v4[\w./]*\.\(\*\w+\)\.\w+\(0x([0-9a-f]+)`)
	// describedIn is how dragonboat names a replica in its texts.
	describedIn = regexp.MustCompile(`\[(\d{5,}):(\d{5,})\]`)
)

// diskTrouble finds, in what dragonboat says, that the disk does not take what is written: a snapshot that cannot be saved stops it like an
// invariant, and nothing is wrong with the replica. It returns the first line.
func diskTrouble(text string) (what string, found bool) {
	for _, trouble := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EROFS} {
		if strings.Contains(text, trouble.Error()) {
			what, _, _ = strings.Cut(text, "\n")
			return what, true
		}
	}
	return "", false
}

// tell reports the fault to the hosts that it may concern; false if there is none.
// Without a trace of the replica the fault is every host's, of which a process has one
// outside tests.
func (a *attribution) tell(text, stack string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if what, found := diskTrouble(text); found {
		for h := range a.hosts {
			go h.fail(Fault{Kind: FaultDisk, What: what})
		}
		return len(a.hosts) > 0
	}
	for _, found := range receivers.FindAllStringSubmatch(stack, -1) {
		address, err := strconv.ParseUint(found[1], 16, 64)
		if o, known := a.replicas[uintptr(address)]; err == nil && known {
			go o.host.fail(Fault{Shard: o.key.shard, Replica: o.key.replica, Kind: FaultRaft, What: text})
			return true
		}
	}
	f := Fault{Kind: FaultRaft, What: text}
	if found := describedIn.FindStringSubmatch(text); found != nil {
		f.Shard, _ = strconv.ParseUint(found[1], 10, 64)   //nolint:errcheck // digits
		f.Replica, _ = strconv.ParseUint(found[2], 10, 64) //nolint:errcheck // digits
	}
	for h := range a.hosts {
		go h.fail(f)
	}
	return len(a.hosts) > 0
}
