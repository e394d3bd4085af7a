package io.github.edgeqkv.demo

import android.app.Activity
import android.net.LocalServerSocket
import android.net.LocalSocket
import android.os.Bundle
import android.os.ParcelFileDescriptor
import android.os.Process
import android.os.SystemClock
import android.system.Os
import android.system.OsConstants
import android.system.StructPollfd
import android.view.WindowManager
import android.widget.TextView
import io.github.edgeqkv.BenchWorker
import java.io.IOException
import java.util.concurrent.atomic.AtomicBoolean

/** A process that `edgeqkv bench --in-app` measures, as runtimes/android/in-app.md says; each is in a process of its own. */
abstract class MeasureActivity : Activity() {
    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        window.addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON)
        setContentView(R.layout.measure)
        keepClearOfBars(part(R.id.root))
        val name = intent.getStringExtra("socket")
        if (name == null || !BenchSocket.isName(name)) {
            finish()
            return
        }
        part<TextView>(R.id.measure_title).text = intent.getStringExtra("title").orEmpty()
        // Android may have ended the activity alone, and start it again in the process that is being measured.
        if (started.compareAndSet(false, true)) Thread({ serve(name) }, "measured").start()
    }

    private fun serve(name: String) {
        try {
            connection(name)?.use { socket -> ParcelFileDescriptor.dup(socket.fileDescriptor).use { BenchWorker.serve(it.fd) } }
        } catch (error: IOException) {
            // The host sees that nobody answers.
        } finally {
            runOnUiThread {
                finishAndRemoveTask()
                Process.killProcess(Process.myPid())
            }
        }
    }

    /** The first one of the shell's; null when there is none in time. */
    private fun connection(name: String): LocalSocket? {
        val server = LocalServerSocket(name)
        try {
            return connection(server)
        } finally {
            server.close()
        }
    }

    private fun connection(server: LocalServerSocket): LocalSocket? {
        val end = SystemClock.elapsedRealtime() + BenchSocket.PATIENCE_MS
        val waiting = StructPollfd().apply {
            fd = server.fileDescriptor
            events = OsConstants.POLLIN.toShort()
        }
        while (true) {
            val left = end - SystemClock.elapsedRealtime()
            if (left <= 0 || Os.poll(arrayOf(waiting), left.toInt()) == 0) return null
            val peer = server.accept()
            if (BenchSocket.serves(peer.peerCredentials.uid)) return peer
            peer.close()
        }
    }

    private companion object {
        val started = AtomicBoolean()
    }
}

class MeasureActivity0 : MeasureActivity()

class MeasureActivity1 : MeasureActivity()

class MeasureActivity2 : MeasureActivity()

class MeasureActivity3 : MeasureActivity()

class MeasureActivity4 : MeasureActivity()

class MeasureActivity5 : MeasureActivity()

class MeasureActivity6 : MeasureActivity()

class MeasureActivity7 : MeasureActivity()
