package peer

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"shoal/peer/identity"
	"shoal/runtime/pods"
)

// What a peer takes when nothing else is said. The ranges are those of every
// cluster founded without flags; a founded cluster keeps its own for ever.
const (
	DefaultDataDir     = identity.DefaultDataDir
	DefaultPort        = 7443
	DefaultClusterCIDR = "10.32.0.0/12"
	DefaultServiceCIDR = "10.96.0.0/16"

	// NodePrefixBits is the length of the pod range each node gets out of the
	// cluster CIDR: a /24 holds 254 pods.
	NodePrefixBits = 24

	// SocketName is the local administration socket inside the data folder.
	SocketName = "peer.sock"
)

// Config says how one peer runs. The same fields serve a founding peer, a
// joining one and one that resumes; which of the three it is follows from the
// data folder and Addresses alone.
type Config struct {
	// DataDir holds everything the peer must not forget. Empty means DefaultDataDir.
	DataDir string
	// Addresses are host:port of any peers of the cluster to join; the port
	// may be left out. Empty with an empty data folder founds a cluster.
	Addresses []string
	// Token is the join token `id.secret.pin`; needed only to join.
	Token string
	// Advertise is the IP address under which the other peers reach this one.
	// Empty means the address of the interface that holds the default route.
	Advertise string
	// Name is the Kubernetes Node name: a DNS subdomain, unique in the
	// cluster. Empty means the host's name in lower case.
	Name string
	// ClusterCIDR and ServiceCIDR are the IPv4 ranges of pods and Services.
	// They are chosen at founding and come with the cluster afterwards; empty
	// means the cluster's, or the default at founding.
	ClusterCIDR string
	ServiceCIDR string
	// Voters is how many replicas of each shard vote where there are peers enough, 3 or 5. It is chosen at founding and is a setting of the
	// cluster afterwards (`peer set voters`); 0 means the default.
	Voters int
	// Containerd is the socket of a containerd already running on the host;
	// empty means the embedded one.
	Containerd string
	// Listen is the IP address to bind, empty for all of them.
	Listen string
	// Port is the one TCP port, and the UDP port of gossip. 0 means DefaultPort.
	Port int
	// Zone is written to the node's topology.kubernetes.io/zone label.
	Zone string
	// Labels are further labels of the Node object.
	Labels map[string]string
	// CgroupParent is the cgroup below which the pods' cgroups are made.
	// Several peers on one machine need one each. Empty means "shoal".
	CgroupParent string
	// NoReadLeases makes this peer ask a majority for every consistent read, also of the shards that it leads.
	NoReadLeases bool
	// HistoryBytes and HistoryAge bound the superseded versions that each shard
	// keeps on this peer. 0 means the store's defaults.
	HistoryBytes int64
	HistoryAge   time.Duration
	// Images say when unused images are removed. The zero value means the kubelet's thresholds.
	Images pods.ImageThresholds
	// Version is the version of this program, as `peer version` prints it.
	Version string
	// Output takes what is for the user's eyes, the command that adds the next host; nil means standard output.
	Output io.Writer
	// Machine is what the peer stands on; the zero value is this host.
	Machine Machine
	// Logger takes the peer's log; nil means slog.Default().
	Logger *slog.Logger

	// nameFromHost says that Name was not given: a peer that resumes keeps
	// the name it joined with, whatever the host is called now.
	nameFromHost bool
}

// WithDefaults returns the configuration with every empty field that has a
// fixed default filled in. The name comes from the host.
func (c Config) WithDefaults() (Config, error) {
	if c.DataDir == "" {
		c.DataDir = DefaultDataDir
	}
	abs, err := filepath.Abs(c.DataDir)
	if err != nil {
		return c, fmt.Errorf("data folder %s: %w", c.DataDir, err)
	}
	c.DataDir = abs
	if c.Port == 0 {
		c.Port = DefaultPort
	}
	if c.CgroupParent == "" {
		c.CgroupParent = "shoal"
	}
	if c.Images == (pods.ImageThresholds{}) {
		c.Images = pods.DefaultImageThresholds()
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Output == nil {
		c.Output = os.Stdout
	}
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return c, fmt.Errorf("the host has no name, give one with --name: %w", err)
		}
		c.Name, c.nameFromHost = strings.ToLower(host), true
	}
	addresses := make([]string, len(c.Addresses))
	for i, address := range c.Addresses {
		addresses[i] = withPort(address)
	}
	c.Addresses = addresses
	return c, nil
}

// withPort adds the default port to an address that has none.
func withPort(address string) string {
	if _, _, err := net.SplitHostPort(address); err == nil {
		return address
	}
	return net.JoinHostPort(strings.Trim(address, "[]"), strconv.Itoa(DefaultPort))
}

// ValidateFlags checks everything that can be judged without looking at the
// host. Call it on what WithDefaults returned.
func (c Config) ValidateFlags() error {
	if len(c.Name) > 63 || len(validation.IsDNS1123Subdomain(c.Name)) > 0 {
		return fmt.Errorf("name %q is not a DNS name of at most 63 characters (a-z, 0-9, '-' and '.'): give another with --name", c.Name)
	}
	if c.Port < 1 || c.Port > 65535 {
		return fmt.Errorf("port %d is not between 1 and 65535: correct --listen", c.Port)
	}
	if c.Listen != "" {
		if _, err := netip.ParseAddr(c.Listen); err != nil {
			return fmt.Errorf("--listen %q is not PORT or IP:PORT", c.Listen)
		}
	}
	if c.Advertise != "" {
		if err := checkAdvertise(c.Advertise); err != nil {
			return err
		}
	}
	for _, address := range c.Addresses {
		if err := checkAddress(address); err != nil {
			return err
		}
	}
	if problems := validation.IsValidLabelValue(c.Zone); len(problems) > 0 {
		return fmt.Errorf("--zone %q is not a label value: %s", c.Zone, problems[0])
	}
	if c.Voters != 0 && !validVoters(c.Voters) {
		return fmt.Errorf("--voters must be 3 or 5, not %d", c.Voters)
	}
	if c.Containerd != "" && !filepath.IsAbs(strings.TrimPrefix(c.Containerd, "unix://")) {
		return fmt.Errorf("--containerd %q is not the absolute path of a socket", c.Containerd)
	}
	if err := c.Images.Validate(); err != nil {
		return err
	}
	return c.checkRanges()
}

func checkAdvertise(advertise string) error {
	ip, err := netip.ParseAddr(advertise)
	if err != nil {
		return fmt.Errorf("--advertise %q is not an IP address", advertise)
	}
	if ip.IsUnspecified() || ip.IsMulticast() {
		return fmt.Errorf("--advertise %s is no address that other peers can reach: give one of this host's own", advertise)
	}
	return nil
}

func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return fmt.Errorf("address %q is not HOST or HOST:PORT", address)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return fmt.Errorf("address %q has no port between 1 and 65535", address)
	}
	return nil
}

func (c Config) checkRanges() error {
	cluster, err := parseRange("--cluster-cidr", c.ClusterCIDR, DefaultClusterCIDR)
	if err != nil {
		return err
	}
	service, err := parseRange("--service-cidr", c.ServiceCIDR, DefaultServiceCIDR)
	if err != nil {
		return err
	}
	if cluster.Bits() > NodePrefixBits {
		return fmt.Errorf("--cluster-cidr %s is too small: each node takes a /%d out of it", cluster, NodePrefixBits)
	}
	if service.Bits() > 28 || service.Bits() < 12 {
		return fmt.Errorf("--service-cidr %s must be between a /12 and a /28", service)
	}
	if cluster.Overlaps(service) {
		return fmt.Errorf("--cluster-cidr %s and --service-cidr %s overlap: choose two separate ranges", cluster, service)
	}
	if ip, err := netip.ParseAddr(c.Advertise); err == nil && (cluster.Contains(ip) || service.Contains(ip)) {
		return fmt.Errorf("this host's address %s lies inside --cluster-cidr %s or --service-cidr %s: choose ranges that your network does not use", ip, cluster, service)
	}
	return nil
}

func parseRange(flag, text, fallback string) (netip.Prefix, error) {
	if text == "" {
		text = fallback
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil || !prefix.Addr().Is4() {
		return netip.Prefix{}, fmt.Errorf("%s %q is not an IPv4 range such as %s", flag, text, fallback)
	}
	if prefix.Masked() != prefix {
		return netip.Prefix{}, fmt.Errorf("%s %s has bits set beyond its prefix length: write %s", flag, prefix, prefix.Masked())
	}
	return prefix, nil
}
