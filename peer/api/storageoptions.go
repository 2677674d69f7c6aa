package api

import (
	"fmt"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsv1beta1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1beta1"
	apiextensionsapiserver "k8s.io/apiextensions-apiserver/pkg/apiserver"
	apiextensionsoptions "k8s.io/apiextensions-apiserver/pkg/cmd/server/options"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/apiserver/pkg/storage/value"
	aestransformer "k8s.io/apiserver/pkg/storage/value/encrypt/aes"
	"k8s.io/kubernetes/pkg/controlplane"
	"k8s.io/kubernetes/pkg/kubeapiserver"

	"shoal/peer/api/storage"
)

// secretPrefix marks values sealed with AES-256-GCM, key 1. A later key gets a number of its own, so that both can be read.
const secretPrefix = "k8s:enc:aesgcm:v1:1:"

// stores makes REST options whose storage.Interface comes from our decorator and whose codecs, key prefixes and
// encryption are those kube-apiserver would have chosen.
type stores struct {
	etcd         genericoptions.EtcdOptions
	factory      *serverstorage.DefaultStorageFactory
	transformers value.ResourceTransformers
	decorator    generic.StorageDecorator
}

func newStores(etcd *genericoptions.EtcdOptions, config *Config, server *genericapiserver.Config) (*stores, error) {
	factoryConfig := kubeapiserver.NewStorageFactoryConfigEffectiveVersion(server.EffectiveVersion)
	factoryConfig.APIResourceConfig = controlplane.DefaultAPIResourceConfigSource()
	factoryConfig.DefaultResourceEncoding.SetEffectiveVersion(server.EffectiveVersion)
	factory, err := factoryConfig.Complete(etcd).New()
	if err != nil {
		return nil, fmt.Errorf("storage factory: %w", err)
	}
	sealed, err := aestransformer.NewHKDFExtendedNonceGCMTransformer(config.EncryptionKey)
	if err != nil {
		return nil, fmt.Errorf("encryption at rest: %w", err)
	}
	return &stores{
		etcd:    *etcd,
		factory: factory,
		transformers: encryptionconfig.StaticTransformers{
			{Resource: "secrets"}: value.NewPrefixTransformers(nil, value.PrefixTransformer{Prefix: []byte(secretPrefix), Transformer: sealed}),
		},
		decorator: storage.NewDecorator(storage.DecoratorConfig{Host: config.Host, Logger: config.Logger}),
	}, nil
}

// builtin serves the built-in groups.
func (s *stores) builtin() generic.RESTOptionsGetter {
	return s.decorate(s.etcd.CreateRESTOptionsGetter(s.factory, s.transformers))
}

// definitions serves CustomResourceDefinitions themselves, in the version upstream stores them.
func (s *stores) definitions() generic.RESTOptionsGetter {
	etcd := s.etcd
	etcd.StorageConfig.Codec = apiextensionsapiserver.Codecs.LegacyCodec(apiextensionsv1beta1.SchemeGroupVersion, apiextensionsv1.SchemeGroupVersion)
	etcd.StorageConfig.EncodeVersioner = runtime.NewMultiGroupVersioner(apiextensionsv1beta1.SchemeGroupVersion, schema.GroupKind{Group: apiextensionsv1beta1.GroupName})
	return s.decorate(etcd.CreateRESTOptionsGetter(&genericoptions.SimpleStorageFactory{StorageConfig: etcd.StorageConfig}, s.transformers))
}

// customResources serves the objects that definitions define.
func (s *stores) customResources() generic.RESTOptionsGetter {
	return s.decorate(apiextensionsoptions.NewCRDRESTOptionsGetter(s.etcd, s.transformers, nil))
}

func (s *stores) decorate(inner generic.RESTOptionsGetter) generic.RESTOptionsGetter {
	return storage.NewRESTOptionsGetter(inner, s.decorator)
}
