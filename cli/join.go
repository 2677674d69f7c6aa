package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
	"time"

	"shoal/peer/admin"
)

// Join is `peer join`: the flags of a peer. Empty ones take the peer's own
// defaults, or what the data folder says.
type Join struct {
	Addresses []string `arg:"" optional:"" name:"address" help:"HOST[:PORT] of any peers of the cluster to join. None: found a cluster, or resume. For a peer that belongs to one already: where the others are now."`

	Token        string            `help:"Join token, from 'peer token create' on any peer." env:"SHOAL_TOKEN" placeholder:"ID.SECRET.PIN"`
	Peer         []string          `help:"The same as an address argument; for the configuration file." placeholder:"HOST[:PORT]"`
	Name         string            `help:"Name of this node, unique in the cluster. Default: the host's name."`
	Advertise    string            `help:"IP address under which the other peers reach this one. Default: that of the default route." placeholder:"IP"`
	Listen       listenAddress     `help:"Port, or IP:PORT, to bind (TCP and UDP)." default:"7443" placeholder:"PORT"`
	ClusterCIDR  string            `name:"cluster-cidr" help:"Range of the pods; chosen at founding. Default: 10.32.0.0/12." placeholder:"RANGE"`
	ServiceCIDR  string            `name:"service-cidr" help:"Range of the Services; chosen at founding. Default: 10.96.0.0/16." placeholder:"RANGE"`
	Voters       int               `help:"Replicas of each shard that vote, where there are peers enough: 3 or 5; chosen at founding, later by 'peer set voters'. Default: 3." placeholder:"N"`
	Containerd   string            `help:"Socket of a containerd that runs already, instead of the embedded one." placeholder:"SOCKET"`
	Zone         string            `help:"Zone of this node (topology.kubernetes.io/zone)."`
	Label        map[string]string `help:"Further labels of this node." placeholder:"KEY=VALUE" mapsep:","`
	CgroupParent string            `help:"Cgroup below which the pods' cgroups are made. Default: shoal." placeholder:"CGROUP"`
	HistoryBytes byteSize          `help:"Superseded versions that each shard keeps, for watches and lists of the past." default:"32MiB" placeholder:"SIZE"`
	HistoryAge   time.Duration     `help:"How old they may become." default:"10m" placeholder:"DURATION"`
	ReadLeases   bool              `help:"Answer consistent reads of the shards this peer leads without asking a majority each time; off where the host may be stopped and go on without noticing, as by a hypervisor." default:"true" negatable:""`
	ImageGCHigh  int               `name:"image-gc-high-threshold" help:"Percent of the images' disk from which on unused images are removed; 100 for never." default:"85" placeholder:"PERCENT"`
	ImageGCLow   int               `name:"image-gc-low-threshold" help:"Percent down to which they are removed." default:"80" placeholder:"PERCENT"`
	LogLevel     string            `help:"What to log: debug, info, warn or error." enum:"debug,info,warn,error" default:"info"`
	Config       configFile        `help:"YAML or TOML file with flags by name." placeholder:"FILE"`

	// DataDir and Version come from outside this command.
	DataDir string `kong:"-"`
	Version string `kong:"-"`
}

// listenAddress is PORT or IP:PORT.
type listenAddress struct {
	IP   string
	Port int
}

// UnmarshalText reads PORT, :PORT or IP:PORT.
func (a *listenAddress) UnmarshalText(text []byte) error {
	port := string(text)
	if ip, rest, err := net.SplitHostPort(port); err == nil {
		a.IP, port = ip, rest
	}
	number, err := strconv.Atoi(port)
	if err != nil || number < 1 || number > 65535 || a.IP != "" && net.ParseIP(a.IP) == nil {
		return fmt.Errorf("%q is not PORT or IP:PORT", text)
	}
	a.Port = number
	return nil
}

// byteSize is a number of bytes: 1048576, 1024KiB, 1MiB, 1GiB.
type byteSize int64

// UnmarshalText reads a number with or without a unit.
func (b *byteSize) UnmarshalText(text []byte) error {
	number, shift := strings.TrimSpace(string(text)), 0
	for i, unit := range []string{"KiB", "MiB", "GiB"} {
		if rest, found := strings.CutSuffix(number, unit); found {
			number, shift = strings.TrimSpace(rest), 10*(i+1)
			break
		}
	}
	size, err := strconv.ParseInt(number, 10, 64)
	if err != nil || size < 0 || size > math.MaxInt64>>shift {
		return fmt.Errorf("%q is no size: a number of bytes, or with KiB, MiB or GiB", text)
	}
	*b = byteSize(size << shift)
	return nil
}

// Least that the history of a shard may be bounded to: room for some large objects, and time to reconnect.
const (
	leastHistoryBytes = 4 << 20
	leastHistoryAge   = time.Minute
)

// Validate refuses flags that would only show later to be useless.
func (j *Join) Validate() error {
	if j.HistoryBytes < leastHistoryBytes {
		return fmt.Errorf("--history-bytes %d is too little: at least 4MiB", j.HistoryBytes)
	}
	if j.HistoryAge < leastHistoryAge {
		return fmt.Errorf("--history-age %v is too short: at least %v", j.HistoryAge, leastHistoryAge)
	}
	if j.ImageGCHigh < 0 || j.ImageGCHigh > 100 || j.ImageGCLow < 0 || j.ImageGCLow >= j.ImageGCHigh {
		return fmt.Errorf("--image-gc-low-threshold %d and --image-gc-high-threshold %d: two percentages are wanted, the low one below the high one",
			j.ImageGCLow, j.ImageGCHigh)
	}
	return nil
}

// Run hands the flags to the peer.
func (j *Join) Run(ctx context.Context, root *grammar, parts Parts, std streams) error {
	if parts.Join == nil {
		return errors.New("this program was built without a peer")
	}
	flags := *j
	flags.DataDir, flags.Version = root.DataDir, Version()
	flags.Addresses = append(flags.Addresses, flags.Peer...)
	err := parts.Join(ctx, flags)
	if errors.Is(err, admin.ErrRunning) && len(flags.Addresses) > 0 && flags.Token == "" {
		// The peer runs, started by systemd for instance, and cannot find the others: this is where they are now.
		if err := root.local().Hint(ctx, flags.Addresses); err != nil {
			return err
		}
		fmt.Fprintln(std.out, "the peer that runs on this host has met the others there")
		return nil
	}
	return err
}
