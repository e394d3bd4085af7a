package io.github.edgeqkv

import java.io.File

/**
 * How [EdgeQKV.open] opens a bundle. In Kotlin `OpenOptions { threads = 4 }`, in Java
 * `new OpenOptions.Builder().threads(4).build()`.
 */
public class OpenOptions private constructor(builder: Builder) {
    /** "onnx" or "executorch"; null is the bundle's first that can run here. */
    public val runtime: String? = builder.runtime

    /** "fused" or "stock"; null is the bundle's first that can run here. */
    public val kernel: String? = builder.kernel

    /** Threads that compute, at most 256; 0 is the runtime's choice. ExecuTorch has one number for the whole process. */
    public val threads: Int = builder.threads

    /** Files are not compared with their digests, which the caller has done. */
    public val unchecked: Boolean = builder.unchecked

    /**
     * ONNX Runtime's library, 1.23 or newer; null is `libonnxruntime.so` as the dynamic linker finds it, in an app the one in
     * its APK. The first one that is loaded serves the whole process.
     */
    public val onnxRuntimeLibrary: File? = builder.onnxRuntimeLibrary

    /** Likewise `libedgeqkv_executorch.so`. */
    public val execuTorchLibrary: File? = builder.execuTorchLibrary

    /** Collects what [OpenOptions] has; the properties are described there. */
    public class Builder {
        @get:JvmSynthetic
        @set:JvmSynthetic
        public var runtime: String? = null

        @get:JvmSynthetic
        @set:JvmSynthetic
        public var kernel: String? = null

        @get:JvmSynthetic
        @set:JvmSynthetic
        public var threads: Int = 0

        @get:JvmSynthetic
        @set:JvmSynthetic
        public var unchecked: Boolean = false

        @get:JvmSynthetic
        @set:JvmSynthetic
        public var onnxRuntimeLibrary: File? = null

        @get:JvmSynthetic
        @set:JvmSynthetic
        public var execuTorchLibrary: File? = null

        public fun runtime(runtime: String?): Builder = apply { this.runtime = runtime }

        public fun kernel(kernel: String?): Builder = apply { this.kernel = kernel }

        public fun threads(threads: Int): Builder = apply { this.threads = threads }

        public fun unchecked(unchecked: Boolean): Builder = apply { this.unchecked = unchecked }

        public fun onnxRuntimeLibrary(file: File?): Builder = apply { onnxRuntimeLibrary = file }

        public fun execuTorchLibrary(file: File?): Builder = apply { execuTorchLibrary = file }

        public fun build(): OpenOptions = OpenOptions(this)
    }

    public companion object {
        /** Everything is left to the bundle and the runtime. */
        @JvmField
        public val DEFAULT: OpenOptions = Builder().build()

        @JvmSynthetic
        public operator fun invoke(fill: Builder.() -> Unit): OpenOptions = Builder().apply(fill).build()
    }
}
