package peer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"shoal/peer/identity"
)

// Start is the way a peer begins. Nobody chooses it: it follows from the data
// folder and from whether addresses were given.
type Start string

// The three ways to begin.
const (
	Founding Start = "found"  // nothing in the data folder, no address
	Joining  Start = "join"   // nothing in the data folder, an address
	Resuming Start = "resume" // an identity in the data folder
)

// StoreDir is where the peer's replicas of the store live.
func (c Config) StoreDir() string { return filepath.Join(c.DataDir, "consensus") }

// SocketPath is the local administration socket.
func (c Config) SocketPath() string { return filepath.Join(c.DataDir, SocketName) }

// auditLog is where requests are written down. A simulated machine keeps none: the rotation never ends its goroutine.
func (c Config) auditLog() string {
	if c.Machine.simulated() {
		return ""
	}
	return filepath.Join(c.DataDir, "audit.log")
}

// KubeconfigPath is the administrator's kubeconfig that the peer keeps up to date.
func (c Config) KubeconfigPath() string { return filepath.Join(c.DataDir, "kubeconfig") }

// Validate checks the flags, the host and the data folder, in this order, so
// that a typing error is told to any user and missing root before missing
// kernel features. Call it on what WithDefaults returned.
func (c Config) Validate() error {
	if err := c.ValidateFlags(); err != nil {
		return err
	}
	if c.Machine.simulated() {
		return os.MkdirAll(c.DataDir, 0o700)
	}
	if err := CheckHost(); err != nil {
		return err
	}
	return c.checkDataDir()
}

// checkDataDir makes the data folder if need be and proves that it can be
// written to durably, which a full or read-only disk cannot.
func (c Config) checkDataDir() error {
	// A Unix socket's path is limited to 107 bytes by the kernel.
	if path := c.SocketPath(); len(path) > 107 {
		return fmt.Errorf("the data folder's path %s is too long for a Unix socket inside it: choose a shorter --data-dir", c.DataDir)
	}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return fmt.Errorf("the data folder cannot be made: %w", err)
	}
	probe, err := os.CreateTemp(c.DataDir, ".probe-*")
	if err != nil {
		return fmt.Errorf("the data folder cannot be written to: %w", err)
	}
	defer os.Remove(probe.Name())
	_, err = probe.Write(make([]byte, 4096))
	if err = errors.Join(err, probe.Sync(), probe.Close()); err != nil {
		return fmt.Errorf("the data folder cannot be written to: %w", err)
	}
	return c.reserve()
}

// HowToStart reads the data folder and decides, or refuses what contradicts
// it. The identity is returned when the peer resumes. Nothing is changed.
func (c Config) HowToStart(ctx context.Context, now time.Time) (Start, *identity.Peer, error) {
	self, err := identity.Load(c.DataDir, now)
	if err == nil {
		return Resuming, self, c.checkResume(ctx, self)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", nil, err
	}
	if _, err := os.Stat(c.restoringPath()); err == nil {
		return "", nil, fmt.Errorf("a restore into %s was interrupted: run `peer restore` again, or remove the folder", c.DataDir)
	}
	if entries, err := os.ReadDir(c.StoreDir()); err == nil && len(entries) > 0 {
		return "", nil, fmt.Errorf("%s holds a store but no identity: restore the folder %s from a backup, or choose another --data-dir; nothing was changed",
			c.DataDir, filepath.Join(c.DataDir, "identity"))
	}
	if len(c.Addresses) == 0 {
		if c.Token != "" {
			return "", nil, errors.New("a token was given but no address: name any peer of the cluster to join, `peer join ADDRESS --token …`")
		}
		return Founding, nil, nil
	}
	if c.Voters != 0 {
		return "", nil, errVotersOfAnother
	}
	if _, err := identity.ParseToken(c.Token); err != nil {
		return "", nil, err
	}
	return Joining, nil, nil
}

// errVotersOfAnother refuses the choice of the founder to everybody else.
var errVotersOfAnother = errors.New("--voters is for the peer that founds a cluster, and the one that this peer belongs to is founded already: start without the flag, and run `peer set voters` on any peer to change their number")

// checkResume refuses flags that would make this peer another one, or a member
// of another cluster, than its data folder says.
func (c Config) checkResume(ctx context.Context, self *identity.Peer) error {
	if !c.nameFromHost && c.Name != "" && c.Name != self.Name {
		return fmt.Errorf("%s belongs to the peer %q: start it without --name %s, or choose another --data-dir", c.DataDir, self.Name, c.Name)
	}
	for flag, pair := range map[string][2]string{
		"--cluster-cidr": {c.ClusterCIDR, self.Cluster.ClusterCIDR.String()},
		"--service-cidr": {c.ServiceCIDR, self.Cluster.ServiceCIDR.String()},
	} {
		if given, held := pair[0], pair[1]; given != "" && given != held {
			return fmt.Errorf("the cluster was founded with %s %s, which cannot be changed to %s: start without the flag", flag, held, given)
		}
	}
	if c.Voters != 0 && !self.Founder {
		return errVotersOfAnother
	}
	if c.Token != "" {
		token, err := identity.ParseToken(c.Token)
		if err != nil {
			return err
		}
		if err := self.CheckToken(token); err != nil {
			return err
		}
	}
	return c.checkSeeds(ctx, self)
}

// checkSeeds asks all given addresses at once whether they belong to the
// peer's cluster, so that dead ones cost one timeout and not one each.
func (c Config) checkSeeds(ctx context.Context, self *identity.Peer) error {
	problems := make([]error, len(c.Addresses))
	var all sync.WaitGroup
	for i, address := range c.Addresses {
		all.Go(func() { problems[i] = self.CheckAddress(ctx, c.Machine.Dial, address) })
	}
	all.Wait()
	for _, problem := range problems {
		if problem != nil {
			return problem
		}
	}
	return nil
}

// Ranges are the pod and Service ranges a founding peer gives its cluster.
func (c Config) Ranges() (cluster, service netip.Prefix, err error) {
	if cluster, err = parseRange("--cluster-cidr", c.ClusterCIDR, DefaultClusterCIDR); err != nil {
		return cluster, service, err
	}
	service, err = parseRange("--service-cidr", c.ServiceCIDR, DefaultServiceCIDR)
	return cluster, service, err
}

// forget removes what ties a data folder to a cluster, after the peer left it. Images stay: the next cluster may use them.
func (c Config) forget() error {
	failed := []error{identity.Forget(c.DataDir)}
	for _, name := range []string{c.StoreDir(), c.KubeconfigPath(), filepath.Join(c.DataDir, "node"), filepath.Join(c.DataDir, seedsFile), filepath.Join(c.DataDir, foundedFile)} {
		failed = append(failed, os.RemoveAll(name))
	}
	return errors.Join(failed...)
}
